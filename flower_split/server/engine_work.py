"""`EngineWork`: what an engine makes of one session when it ends."""

from dataclasses import dataclass

from flower_split.lowrank import Instructions, Scaling
from flower_split.server.session_states import SiloState
from flower_split.server.stepping import AdapterSlot
from flower_split.server.ticket_record import SessionOutcome
from flower_split.server.trunk_optimizers import TrunkOptimizers
from flower_split.transport.messages import SessionSpec, SessionSummary, Ticket


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineWork:
    """The `SessionWork` of one session: its adapter, and who makes what of it."""

    ticket: Ticket | None
    spec: SessionSpec
    scaling: Scaling | None
    instructions: Instructions
    slot: AdapterSlot | None
    optimizers: TrunkOptimizers

    def outcome(self, summary: SessionSummary) -> SessionOutcome:
        """See `SessionWork`."""
        trained = self.slot is not None and self.spec.purpose == "train"
        return SessionOutcome(
            tensors=self.slot.sent() if self.slot is not None and trained else {},
            summary=summary,
            scaling=self.scaling,
            silo=self.spec.silo,
        )

    def proposal(self, summary: SessionSummary) -> SiloState | None:
        """See `SessionWork`."""
        if self.ticket is None:
            return None
        return self.optimizers.proposal(
            self.ticket,
            self.spec,
            self.slot,
            scaling=self.scaling,
            instructions=self.instructions,
            steps=summary.steps,
        )

    def free(self) -> None:
        """See `SessionWork`."""
        if self.slot is not None:
            self.slot.free()
