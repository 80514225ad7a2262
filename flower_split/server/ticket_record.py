"""The ticket record: what becomes of the one session that a ticket opens, from start to outcome.

::

    PREPARED ──open──> OPEN ──finish──> FINISHED ──collect──> COLLECTED ──accept──> ACCEPTED
                         │
                         └───close───> BROKEN

    any stage ──discard──> DISCARDED

Two parties move a record, each from threads of its own. The trunk's end opens the session, which
the silo finishes or does not. The strategy's end prepares and discards it, and between the two
collects the outcome once the silo's reply has come, and accepts it if that reply counts.

`close` is the end of the session's work in every stage but those before it; only an open session
is broken by it. A session may outlive its record: it then runs on, and leaves nothing. Every other
step out of this order is refused with `SequenceError`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

from flower_split.errors import SequenceError
from flower_split.lowrank import Allowance, Instructions, Scaling
from flower_split.server.session_states import SiloState
from flower_split.transport.messages import SessionSummary


@dataclass(frozen=True, kw_only=True, eq=False)
class TrunkStart:
    """What a session starts from and is to do, as the strategy wants it for the silo."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The trunk's part of what the silo would get of an uncut model; empty unless `federated`."""
    instructions: Instructions = field(default_factory=Instructions)
    allowance: Allowance | None = None
    """Which ranks and alphas the silo may have; None for the trunk's own only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionOutcome:
    """What a finished session leaves to the strategy."""

    tensors: Mapping[str, Tensor]
    """The trunk's part of the reply, float32; empty unless `federated` and trained."""
    summary: SessionSummary
    scaling: Scaling | None
    """Rank and alpha that the silo told in the handshake; None where it told none."""
    silo: str = ""
    """The silo's name; empty where it told none."""


class SessionWork(Protocol):
    """What an open session holds at the trunk, and what can be made of it. One thread at a time."""

    def outcome(self, summary: SessionSummary) -> SessionOutcome:
        """What the session leaves to the strategy, as it is now."""
        ...

    def proposal(self, summary: SessionSummary) -> SiloState | None:
        """What the silo's next session may resume from; None where that is nothing."""
        ...

    def free(self) -> None:
        """Let go of it all. Called once."""
        ...


class Stage(Enum):
    """How far a ticket's session is; see the module."""

    PREPARED = "prepared"
    OPEN = "open"
    FINISHED = "finished"
    COLLECTED = "collected"
    ACCEPTED = "accepted"
    BROKEN = "broken"
    DISCARDED = "discarded"


class TicketRecord:
    """The record of one ticket. Its methods may be called from several threads.

    Args:
        start: What the session starts from; None for the trunk's master adapter and no
            instructions.
    """

    def __init__(self, start: TrunkStart | None = None) -> None:
        self._lock = threading.Lock()
        self._stage = Stage.PREPARED
        self._start = start
        self._work: SessionWork | None = None
        self._outcome: SessionOutcome | None = None
        self._proposal: SiloState | None = None
        self._silo = ""
        self._progress: Callable[[], SessionSummary] | None = None

    @property
    def silo(self) -> str:
        """The silo's name, as it told it when the session was opened; empty where it told none."""
        return self._silo

    @property
    def stage(self) -> Stage:
        """How far the session is now."""
        return self._stage

    @property
    def is_broken(self) -> bool:
        """Whether the session ended without having been finished."""
        return self._stage is Stage.BROKEN

    @property
    def is_finished(self) -> bool:
        """Whether the session was finished, and its outcome has not been collected."""
        return self._stage is Stage.FINISHED

    def start(self) -> TrunkStart | None:
        """What the session is to start from.

        Raises:
            SequenceError: the session was opened before, or may not be opened any more.
        """
        with self._lock:
            self._require("be opened", Stage.PREPARED)
            return self._start

    def open(self, work: SessionWork, silo: str = "") -> None:
        """The session is open, of the silo of this name, and computes with `work`.

        Raises:
            SequenceError: as `start`.
        """
        with self._lock:
            self._require("be opened", Stage.PREPARED)
            self._stage, self._work, self._start = Stage.OPEN, work, None
            self._silo = silo

    def follow(self, progress: Callable[[], SessionSummary]) -> None:
        """Have `progress` tell how far the session is, from any thread, while it is open."""
        with self._lock:
            if self._work is not None:
                self._progress = progress

    def progress(self) -> SessionSummary | None:
        """How far the open session is, of which nobody waits for anybody; None where none is open.

        Its numbers are read one after the other while the session goes on.
        """
        progress = self._progress
        return None if progress is None else progress()

    def finish(self, summary: SessionSummary) -> None:
        """The silo declares its session complete. A discarded one leaves nothing.

        Raises:
            SequenceError: the session is not open.
        """
        with self._lock:
            if not self._awaited():
                return
            work = self._work
        if work is None:
            raise TypeError("an open session has its work")
        # Tensors are copied outside the lock, for which the strategy's thread may wait.
        outcome, proposal = work.outcome(summary), work.proposal(summary)
        with self._lock:
            if self._awaited():
                self._stage, self._outcome, self._proposal = Stage.FINISHED, outcome, proposal

    def close(self) -> None:
        """The session has ended, finished or not: its work is freed. Can be called twice.

        Raises:
            SequenceError: there was no session.
        """
        with self._lock:
            if self._stage is Stage.PREPARED:
                self._require("be closed", Stage.OPEN)
            if self._stage is Stage.OPEN:
                self._stage = Stage.BROKEN
            work, self._work = self._work, None
            self._progress = None
        if work is not None:
            work.free()

    def collect(self) -> SessionOutcome | None:
        """What the session leaves, once; None unless it was finished."""
        with self._lock:
            if self._stage is not Stage.FINISHED:
                return None
            self._stage = Stage.COLLECTED
            outcome, self._outcome = self._outcome, None
            return outcome

    def accept(self) -> SiloState | None:
        """The silo's reply counts; what its next session resumes from, None where it is nothing.

        Raises:
            SequenceError: the session's outcome was not collected, or was accepted before.
        """
        with self._lock:
            self._require("be accepted", Stage.COLLECTED)
            self._stage = Stage.ACCEPTED
            proposal, self._proposal = self._proposal, None
            return proposal

    def withdraw(self) -> None:
        """Whatever the session has proposed is void, as the states before it were replaced."""
        with self._lock:
            self._proposal = None

    def discard(self) -> None:
        """Nothing that the session leaves, or will yet leave, counts any more."""
        with self._lock:
            self._stage = Stage.DISCARDED
            self._start = self._outcome = self._proposal = None

    def _awaited(self) -> bool:
        """Whether anyone wants what an open session leaves."""
        if self._stage is Stage.DISCARDED:
            return False
        self._require("be finished", Stage.OPEN)
        return True

    def _require(self, verb: str, wanted: Stage) -> None:
        if self._stage is not wanted:
            raise SequenceError(
                f"the session of this ticket is {self._stage.value} and cannot {verb}: only one "
                f"that is {wanted.value} can"
            )
