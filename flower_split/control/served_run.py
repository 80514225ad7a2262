"""`ServedRun`: one run at a trunk service, as the calls of its strategy change it.

Every change may be asked for twice, because an answer can be lost on its way: the second time
finds that it was made.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from flower_split.errors import SequenceError, TrunkBusyError, TrunkRestartedError
from flower_split.server.cut_engines import MOST_IDLE
from flower_split.server.hosting.hosted_run import HostedRun, HostedSession
from flower_split.server.hosting.run_trunk import Invitee
from flower_split.server.ticket_record import SessionOutcome, Stage, TrunkStart
from flower_split.transport.messages import Ticket

MOST_SESSIONS = 1 << 12
"""Invitations of one exchange."""

BYTES_AN_ELEMENT = 16
"""Of a session's adapter: value, gradient and AdamW's two moments, float32."""
VALUE_BYTES = 4
"""Of the adapter that an engine begins with."""


class ServedSession:
    """One invited session: what of it was collected and accepted."""

    def __init__(self, hosted: HostedSession, start: int) -> None:
        self.hosted = hosted
        self.start = start
        """Number of the start."""
        self._outcome: SessionOutcome | None = None
        self._accepted = False

    @property
    def stage(self) -> Stage:
        """How far it is."""
        return self.hosted.stage

    @property
    def num_bytes(self) -> int:
        """Of the outcome that is held."""
        return 0 if self._outcome is None else size_of(self._outcome.tensors)

    def collect(self) -> SessionOutcome | None:
        """What it leaves; None unless it was finished."""
        if self._outcome is None:
            self._outcome = self.hosted.collect()
        return self._outcome

    def accept(self) -> None:
        """The silo's reply counts."""
        if not self._accepted:
            self.hosted.accept()
            self._accepted = True


@dataclass(frozen=True, kw_only=True)
class RunQuota:
    """Bounds of one run."""

    max_sessions: int
    """That are open at once."""
    max_bytes: int
    """Of what its strategy has brought and left here, with the adapters of open sessions."""


class ServedRun:
    """A run that was opened; calls come one at a time, and `verify` from any thread.

    Args:
        secret: Names it.
        owner: Thumbprint of the certificate that opened it; empty without TLS.
        hosted: Its trunk.
        quota: Its bounds.
        on_tickets: Told which tickets are good for this run from now on, and which no more.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        secret: bytes,
        owner: str,
        hosted: HostedRun,
        quota: RunQuota,
        *,
        on_tickets: Callable[["ServedRun", tuple[Ticket, ...], bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.secret = secret
        self.owner = owner
        self.hosted = hosted
        self.quota = quota
        self.seen = clock()
        """When its strategy was last heard of."""
        self.calls = 0
        """That are being answered."""
        self.arriving = asyncio.Lock()
        """Held, in the control port's loop, by the one call whose content arrives."""
        self.answering = asyncio.Lock()
        """Held there by the one call that has a thread."""
        self.changing = threading.Lock()
        """Held by the one call that is being done."""
        self.open_tokens: set[str] = set()
        """Of sessions that silos have opened."""
        self.sessions: dict[bytes, ServedSession] = {}
        self._starts: dict[int, Mapping[str, Tensor]] = {}
        self._on_tickets = on_tickets
        self._clock = clock
        layout = hosted.layout
        held = frozenset(layout.trunk_names)
        elements = sum(_size(shape) for name, shape in layout.plan.shapes if name in held)
        self._session_bytes = BYTES_AN_ELEMENT * elements
        self._engine_bytes = 0
        if layout.either_names:  # every session may have an engine of its own
            self._session_bytes += VALUE_BYTES * elements
            self._engine_bytes = (MOST_IDLE + 2) * VALUE_BYTES * elements
        self._is_closed = False

    def touch(self) -> None:
        """Its strategy is alive."""
        self.seen = self._clock()

    @property
    def name(self) -> str:
        """By which logs and metrics tell it from others; the secret does not follow from it."""
        return self.secret.hex()[:8]

    @property
    def room(self) -> int:
        """Bytes that its strategy may yet bring."""
        held = sum(map(size_of, list(self._starts.values())))
        held += sum(one.num_bytes for one in list(self.sessions.values()))
        held += len(self.open_tokens) * self._session_bytes + self._engine_bytes
        return max(0, self.quota.max_bytes - held)

    @property
    def is_awaited(self) -> bool:
        """Whether a silo or its strategy has yet to finish something."""
        stages = (Stage.OPEN, Stage.FINISHED)
        return self.calls > 0 or any(one.stage in stages for one in [*self.sessions.values()])

    def check_room(self, num_bytes: int) -> None:
        """Raise `TrunkBusyError` where its strategy cannot bring that much now."""
        if num_bytes > self.room:
            raise TrunkBusyError(
                f"tensors of {num_bytes} bytes are brought, and the run's share of the trunk "
                f"service's memory has room for {self.room}: lower lora.r, or raise the service's "
                "--run-gib"
            )

    def check_session(self) -> None:
        """Raise `TrunkBusyError` where a silo can open no further session now."""
        if len(self.open_tokens) >= self.quota.max_sessions:
            raise TrunkBusyError(
                f"{len(self.open_tokens)} sessions of the run are open, its limit. Try later, or "
                "raise trunk.max-sessions"
            )
        if self.room < self._session_bytes:
            raise TrunkBusyError(
                f"{len(self.open_tokens)} sessions of the run are open, and its share of the trunk "
                "service's memory is used up. Try later, lower lora.r, or raise the service's "
                "--run-gib"
            )

    def invite(
        self, session: bytes, invitee: Invitee, number: int, start: TrunkStart, *, known: bool
    ) -> ServedSession:
        """The session that the strategy names so, made at the first call.

        Raises:
            SequenceError: its start is not known here.
            TrunkBusyError: there are too many.
        """
        found = self.sessions.get(session)
        if found is not None:
            return found
        if len(self.sessions) >= MOST_SESSIONS:
            raise TrunkBusyError(f"{len(self.sessions)} sessions were invited: a run's limit")
        if known and number not in self._starts:
            raise SequenceError("a session shall start from tensors that were not brought")
        tensors = self._starts.get(number, start.tensors)
        hosted = self.hosted.invite(
            invitee,
            TrunkStart(tensors=tensors, instructions=start.instructions, allowance=start.allowance),
        )
        self._starts[number] = tensors
        made = self.sessions[session] = ServedSession(hosted, number)
        self._on_tickets(self, _tickets(made), True)
        if self._is_closed:  # meanwhile, without this session
            self.discard(session)
            raise TrunkRestartedError("the run was closed while a silo was invited")
        return made

    def session(self, name: bytes) -> ServedSession:
        """The session of this name.

        Raises:
            SequenceError: there is none.
        """
        found = self.sessions.get(name)
        if found is None:
            raise SequenceError("no session of this name was invited, or it was discarded")
        return found

    def discard(self, name: bytes) -> None:
        """End the session, and drop its start where no other session has it."""
        found = self.sessions.pop(name, None)
        if found is None:
            return
        found.hosted.discard()
        self._on_tickets(self, _tickets(found), False)
        if all(one.start != found.start for one in self.sessions.values()):
            self._starts.pop(found.start, None)

    def close(self) -> None:
        """End every session of it."""
        self._is_closed = True
        for name in list(self.sessions):
            self.discard(name)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all together."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _tickets(session: ServedSession) -> tuple[Ticket, ...]:
    offer = session.hosted.offer
    return (session.hosted.ticket, *(offer.tickets if offer else ()))
