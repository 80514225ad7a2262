"""`EngineCommon`: what engines of several cuts on one trunk's weights have in common."""

from dataclasses import dataclass, field

from flower_split.server.compute.activation_budget import ActivationBudget
from flower_split.server.session_states import SessionStates
from flower_split.server.silo_names import SiloNames
from flower_split.server.snapshots import SnapshotStore
from flower_split.server.ticket_record import TicketRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineCommon:
    """Tickets, names and bounds of one run, whichever of its engines a session is at.

    They are changed in the engines' turns, or by what locks by itself.
    """

    budget: ActivationBudget | None
    """Of what all of them keep for backward passes; None where each has its own."""
    records: dict[str, TicketRecord] = field(default_factory=dict)
    """By the ticket's token."""
    names: SiloNames = field(default_factory=SiloNames)
    states: SessionStates = field(default_factory=SessionStates)
    snapshots: SnapshotStore = field(default_factory=SnapshotStore)
