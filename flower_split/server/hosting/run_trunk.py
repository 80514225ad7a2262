"""`RunTrunk`: one run's trunk as its strategy sees it, in this process or in a service."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from flower_split.server.hosting.layout import RunLayout
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import SessionOutcome, Stage, TrunkStart
from flower_split.transport.invitation import DeliveryOffer
from flower_split.transport.messages import Purpose, SessionSummary, Ticket


@dataclass(frozen=True, kw_only=True)
class SiloChannel:
    """How silos reach the trunk."""

    address: str
    """`host:port` that they are told."""
    tls: bool
    ca: str = ""
    """PEM of the CA that they are told to trust; empty for their own roots."""


@dataclass(frozen=True, kw_only=True)
class Invitee:
    """Whom a session is for, and for how long."""

    run_id: int
    """Flower's id of the run."""
    node_id: int
    server_round: int
    purpose: Purpose
    seconds: float
    """For which its tickets are good."""


class InvitedSession(Protocol):
    """The session that one silo was invited to, from its tickets until it is discarded."""

    @property
    def ticket(self) -> Ticket:
        """Opens the session."""
        ...

    @property
    def offer(self) -> DeliveryOffer | None:
        """The silo's part of the model; None where the silos have their own."""
        ...

    @property
    def silo(self) -> str:
        """The silo's name; empty before the session was opened, or where it told none."""
        ...

    @property
    def stage(self) -> Stage:
        """How far the session is."""
        ...

    @property
    def progress(self) -> Callable[[], SessionSummary | None]:
        """Tells what was counted so far, and None where the session is not open."""
        ...

    def collect(self) -> SessionOutcome | None:
        """What the session leaves, once; None unless it was finished."""
        ...

    def accept(self) -> None:
        """The silo's reply counts: its next session resumes from what this one has left.

        Raises:
            SequenceError: the outcome was not collected.
        """
        ...

    def discard(self) -> None:
        """End the session and the delivery if they are open, and make the tickets worthless."""
        ...


class RunTrunk(Protocol):
    """One run's trunk. A strategy asks it from one thread at a time.

    What is hosted elsewhere may fail with a `TrunkUnavailableError` in any call, and with a
    `TrunkRestartedError` where nothing of the run is left there.
    """

    @property
    def layout(self) -> RunLayout:
        """Which adapter the run yields, and which of its tensors are the trunk's."""
        ...

    @property
    def channel(self) -> SiloChannel:
        """How silos reach it."""
        ...

    @property
    def waiting(self) -> int:
        """Passes that wait there now."""
        ...

    def confirm(self) -> None:
        """See that it goes on, where silos have failed; waits for what is being stopped.

        Raises:
            TrunkRestartedError: their sessions were lost with it.
        """
        ...

    def begin(self, shared: Mapping[str, Tensor]) -> None:
        """Start anew: no session states, and `shared` as what a `shared` trunk has learned."""
        ...

    def invite(self, invitee: Invitee, start: TrunkStart) -> InvitedSession:
        """A session with new tickets, which starts from `start`."""
        ...

    def note_connected(self, node_ids: Collection[int]) -> None:
        """The nodes that are connected now: no other may take one's name over."""
        ...

    def shared_state(self) -> dict[str, Tensor]:
        """What a `shared` trunk has learned so far, float32 on the CPU."""
        ...

    def session_states(self) -> list[SiloState]:
        """The trunk's halves of what the next round can resume from."""
        ...

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """Resume from `states`, which `session_states` gave; after `begin`, which forgets all.

        Raises:
            StateError: a state is not one of this trunk's adapters; nothing is changed then.
        """
        ...
