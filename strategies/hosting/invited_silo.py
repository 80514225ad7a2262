"""An invited silo: the invitation that its message carries, and its session at the trunk."""

from collections.abc import Callable
from dataclasses import dataclass

from flower_split.server.hosting.run_trunk import InvitedSession
from flower_split.server.ticket_record import SessionOutcome, Stage
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
        session: What it is invited to.
    """

    def __init__(self, invitation: Invitation, session: InvitedSession) -> None:
        self.invitation = invitation
        self._session = session

    @property
    def node_id(self) -> int:
        """The node that was invited."""
        return self.invitation.ticket.node_id

    @property
    def is_broken(self) -> bool:
        """Whether its session ended without having been finished."""
        return self._session.stage is Stage.BROKEN

    @property
    def is_finished(self) -> bool:
        """Whether its session was finished, and the outcome has not been collected."""
        return self._session.stage is Stage.FINISHED

    @property
    def seen(self) -> "SeenSession":
        """How far its session is; no thread of the trunk waits for who looks."""
        session = self._session
        return SeenSession(silo=session.silo, stage=session.stage, progress=session.progress)

    def collect(self) -> SessionOutcome | None:
        """What its session leaves, once; None unless it was finished."""
        return self._session.collect()

    def accept(self) -> None:
        """Its reply counts: its next session resumes from what this one has left.

        Raises:
            SequenceError: the outcome was not collected.
        """
        self._session.accept()

    def discard(self) -> None:
        """End its session and its delivery if they are open, and make its tickets worthless."""
        self._session.discard()
