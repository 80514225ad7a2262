"""An invited silo: the invitation that its message carries, and its session at the trunk."""

from collections.abc import Callable
from dataclasses import dataclass

from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import SessionOutcome, Stage, TicketRecord
from flower_split.server.tickets import TicketBook
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import Purpose, SessionSummary


@dataclass(frozen=True, kw_only=True)
class RoundTerms:
    """What an exchange of a round is for: the same for all silos that take part in it."""

    purpose: Purpose
    server_round: int
    num_rounds: int
    """Rounds of the run."""
    seconds: float
    """Seconds after which the exchange ends."""
    last_training: bool = False
    """Whether silos may drop what they keep from round to round."""


@dataclass(frozen=True, kw_only=True)
class SeenSession:
    """A silo's session, as it was when someone looked."""

    silo: str
    """The silo's name; empty before the session was opened, or where it told none."""
    stage: Stage
    progress: Callable[[], SessionSummary | None]
    """What was counted so far; None where it is not open."""


class InvitedSilo:
    """One silo in one exchange, from the invitation until it is discarded.

    Args:
        invitation: As the silo gets it.
        record: State of the invitation's ticket at the trunk.
        engine: The trunk's engine, which made `record`.
        tickets: What issued the invitation's tickets.
    """

    def __init__(
        self, invitation: Invitation, record: TicketRecord, engine: TrunkEngine, tickets: TicketBook
    ) -> None:
        self.invitation = invitation
        self._record = record
        self._engine = engine
        self._tickets = tickets

    @property
    def node_id(self) -> int:
        """The node that was invited."""
        return self.invitation.ticket.node_id

    @property
    def is_broken(self) -> bool:
        """Whether its session ended without having been finished."""
        return self._record.is_broken

    @property
    def is_finished(self) -> bool:
        """Whether its session was finished, and the outcome has not been collected."""
        return self._record.is_finished

    @property
    def seen(self) -> "SeenSession":
        """How far its session is; no thread of the trunk waits for who looks."""
        record = self._record
        return SeenSession(silo=record.silo, stage=record.stage, progress=record.progress)

    def collect(self) -> SessionOutcome | None:
        """What its session leaves, once; None unless it was finished."""
        return self._record.collect()

    def accept(self) -> None:
        """Its reply counts: its next session resumes from what this one has left.

        Raises:
            SequenceError: the outcome was not collected.
        """
        self._engine.accept(self.invitation.ticket)

    def discard(self) -> None:
        """End its session and its delivery if they are open, and make its tickets worthless."""
        offer = self.invitation.offer
        for ticket in (self.invitation.ticket, *(offer.tickets if offer else ())):
            self._tickets.revoke(ticket)
        self._engine.discard(self.invitation.ticket)
