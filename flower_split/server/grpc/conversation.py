"""A conversation: one session's requests and replies in order, whatever streams carry them.

Its coroutines pass requests on through short queues, so that the next microbatch arrives and the
previous one leaves while the trunk computes. They outlive a stream that breaks: what was taken
whole is computed, and its reply waits for the stream that goes on.
"""

import asyncio
import hmac
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from flower_split.errors import (
    DeadlineError,
    ReplayError,
    TrunkError,
    TrunkUnavailableError,
)
from flower_split.server.grpc.admitted import AdmittedSession
from flower_split.server.grpc.asking import Asking
from flower_split.server.grpc.progress import Deadlines, Progress
from flower_split.server.grpc.reply_memory import ReplyMemory
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.grpc.requests import PendingRequest
from flower_split.transport.grpc.resuming import START, ResumePoint, digest_after
from flower_split.transport.messages import (
    AdapterReply,
    Answerable,
    BackwardReply,
    Finish,
    Reply,
    Request,
    SessionSpec,
    SessionSummary,
    Ticket,
    Unanswered,
)
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import HopRules

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Below this many bytes, handing work to a thread costs more than doing it on the event loop.
_INLINE_BYTES = 1 << 16
# Requests that wait between two stages: enough to keep the trunk busy, few enough to bound memory.
_QUEUE_LENGTH = 2
LOST = (
    "the session is lost: the trunk was restarted, or has ended the session, which it holds for a "
    "silo that reconnects for trunk.reconnect-timeout only"
)
"""What a silo is told whose session is not there, whatever the reason."""
_LATER = "the session goes on over a later stream"


class LeftError(Exception):
    """The silo has left, and its stream is to end without a fault."""


class TakenOverError(TrunkUnavailableError):
    """The session goes on over a later stream."""


class Carrier(Protocol):
    """A stream of the session."""

    gone: asyncio.Event
    """Set when it carries the session no more."""

    async def serve(self) -> None:
        """Carry the session until the stream or the session has ended."""
        ...

    def stop(self, reason: Exception) -> None:
        """Have `serve` raise `reason`."""
        ...

    def wake(self) -> None:
        """There is something new for the stream to see."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """On which terms the trunk serves a session."""

    deadlines: Deadlines
    hold: float
    """Seconds for which it waits for another stream where its own broke; 0 for not at all."""
    codecs: Executor
    """For decoding and encoding large tensors."""


class Conversation:
    """Serves one session from its admission to its end.

    Args:
        session: At the backend; closed once, however the conversation ends.
        spec: What it was opened with.
        ticket: The same.
        memory: Keeps its replies.
        terms: See there.
        on_end: Called when the session is closed.
    """

    def __init__(
        self,
        session: AdmittedSession,
        spec: SessionSpec,
        ticket: Ticket | None,
        memory: ReplyMemory,
        terms: Terms,
        on_end: Callable[["Conversation"], None],
    ) -> None:
        self.spec = spec
        self.ticket = ticket
        self.memory = memory
        self.progress = Progress()
        self.resumed = ""
        """Tag of the session state that it resumes from."""
        self.taken = 0
        """Requests that were taken whole."""
        self.hold = terms.hold
        self.fault: TrunkError | None = None
        """Why it has ended; None where it was finished, or the silo left."""
        self.is_finished = False
        """Whether Finish was answered."""
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self.deadlines = terms.deadlines
        self._session = session
        self._codecs = terms.codecs
        self._on_end = on_end
        self._rules = HopRules(spec)
        self._digest = START
        self._settled = 0
        self._meter = ByteMeter()
        self._requests: asyncio.Queue[Request] = asyncio.Queue(_QUEUE_LENGTH)
        self._replies: asyncio.Queue[tuple[Answerable, Reply] | None] = asyncio.Queue(_QUEUE_LENGTH)
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._reason: Exception = LeftError()
        self._ending = asyncio.Event()
        self._is_over = self._is_hurried = False
        self._carrier: Carrier | None = None
        self._attempt = -1
        self._expiry: asyncio.TimerHandle | None = None
        self._task = self._loop.create_task(self._run())

    @property
    def is_settled(self) -> bool:
        """Whether everything that was taken is answered."""
        return self._settled == self.taken

    def check(self, attempt: int, point: ResumePoint) -> None:
        """Raise unless a stream may go on with the session.

        Raises:
            TakenOverError: a later attempt has it.
            TrunkUnavailableError: the trunk has forgotten replies that the silo lacks.
            ReplayError: silo and trunk do not have the same requests.
            WireError: the silo has more replies than it was sent.
        """
        if attempt <= self._attempt:
            raise TakenOverError(_LATER)
        self._check_point(point)

    async def carry(self, carrier: Carrier, attempt: int, point: ResumePoint) -> None:
        """Have `carrier` carry the session until one of them ends; `check` has passed.

        Raises:
            TrunkError: why the session has ended, or this stream.
        """
        self._attempt = attempt
        while self._carrier is not None:
            self._carrier.stop(TakenOverError(_LATER))
            await self._carrier.gone.wait()
            if self._attempt != attempt:  # a later one has come, and may be the carrier by now
                raise TakenOverError(_LATER)
        self._check_point(point)  # the other stream may have carried more since
        self.memory.rewind(point.received)
        self._room.set()
        self._carrier = carrier
        self._keep()
        try:
            await carrier.serve()
        except TakenOverError:
            raise
        except TrunkError as fault:
            self.end(fault)
            if not self._is_hurried:
                await asyncio.shield(self.closed.wait())
            raise
        finally:
            self._carrier = None
            carrier.gone.set()
            self._let_go()
        if self._is_over or self.is_finished:
            await asyncio.shield(self.closed.wait())

    async def take(self, pending: PendingRequest) -> None:
        """Have a request computed after all that were taken before; waits for room.

        It is taken when this returns, and not at all where this is cancelled.

        Raises:
            WireError: a tensor or a number is not what it should be.
        """
        request = await self._offload(pending.num_bytes, pending.build)
        await self._requests.put(request)
        # without a pause after it was put
        if not isinstance(request, Unanswered):
            self.progress.note()
        self.taken += 1
        self._digest = digest_after(self._digest, pending.head)
        for tensor in pending.assembler.announced:
            self._meter.add(tensor.rule.role, tensor.num_bytes)

    def note_sending(self) -> None:
        """A reply is on its way, so that there is room for the next one."""
        self._room.set()

    def end(self, fault: TrunkError | None, *, at_once: bool = False) -> None:
        """End the session, if it has not ended; with no fault where the silo left.

        Args:
            fault: What the silo is told.
            at_once: Whether it is told before the session is closed.
        """
        if self._is_over:
            return
        self._is_over, self._is_hurried = True, at_once
        self._reason = LeftError() if fault is None else fault
        self._ending.set()
        if at_once and fault is not None and self._carrier is not None:
            self._carrier.stop(fault)

    def hold_no_more(self, fault: TrunkError) -> None:
        """From now on the session ends with its stream; with `fault` where it has none."""
        self.hold = 0.0
        if self._carrier is None:
            self.end(fault)

    async def _run(self) -> None:
        try:
            self.fault = await self._served()
        except Exception:
            logger.exception("a session failed")
            self.fault = TrunkUnavailableError("the trunk failed; its log says why")
        if self.fault is not None:
            self.memory.clear()
        self._is_over = True
        self._keep()
        await asyncio.wrap_future(self._session.close())
        self.closed.set()
        self._on_end(self)
        if self._carrier is not None:
            if self.fault is not None:
                self._carrier.stop(self.fault)
            elif not self.is_finished:
                self._carrier.stop(LeftError())
            self._carrier.wake()

    async def _served(self) -> TrunkError | None:
        """Serve until Finish is answered or the silo has left; the fault where there was one."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._watch()), group.create_task(self._stopped())]
                self.resumed = await self._session.open()
                self.opened.set()
                self._wake()
                group.create_task(self._work(group))
                await self._encode()
                for helper in helpers:
                    helper.cancel()
        except ExceptionGroup as faults:
            ours = faults.subgroup(TrunkError)
            fault = (ours or faults).exceptions[0]
            if isinstance(fault, TrunkError):
                return fault
            if not isinstance(fault, LeftError):
                raise fault from None
        return None

    async def _stopped(self) -> None:
        await self._ending.wait()
        raise self._reason

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Ask for passes up to the session's depth at a time, and for all else alone."""
        asking = Asking(self._session, self.progress, group)
        group.create_task(self._note(asking))
        while True:
            request = await self._requests.get()
            await asking.ask(request)
            if isinstance(request, Finish):
                break
        asking.end()

    async def _note(self, asking: Asking) -> None:
        async for request, reply in asking.answers():
            if isinstance(request, Unanswered):
                self._settle()
            else:
                await self._replies.put((request, reply))
        await self._replies.put(None)

    async def _encode(self) -> None:
        while (item := await self._replies.get()) is not None:
            request, reply = item
            if isinstance(reply, SessionSummary):
                reply = replace(reply, wire_bytes=self._meter.read())
            encode = partial(encode_reply, request, reply, self._rules)
            encoded = await self._offload(_effort(reply), encode)
            for outgoing in encoded.tensors:
                self._meter.add(outgoing.header.role, outgoing.header.num_bytes)
            while self.memory.num_unsent > 0:
                self._room.clear()
                await self._room.wait()
            self.memory.add(encoded)
            self._settle()
        self.is_finished = True
        self._wake()

    async def _watch(self) -> None:
        """Raise when nothing moves any more, or when the host has revoked the ticket."""
        idle = self.deadlines.idle
        while True:
            await asyncio.sleep(min(1.0, idle / 4))
            self._session.check()
            if self.progress.idle_seconds > idle:
                raise DeadlineError(f"the session was idle for {idle:g} s and was closed")

    def _settle(self) -> None:
        self._settled += 1
        self._wake()

    def _wake(self) -> None:
        if self._carrier is not None:
            self._carrier.wake()

    def _check_point(self, point: ResumePoint) -> None:
        if self.fault is not None:
            raise self.fault
        if self._is_over and not self.is_finished:
            lost = TrunkUnavailableError(LOST)
            raise self._reason if isinstance(self._reason, TrunkError) else lost
        if not self.memory.has_from(point.received):
            raise TrunkUnavailableError(LOST)
        digest = point.digest(self.taken)
        if digest is None or not hmac.compare_digest(digest, self._digest):
            raise ReplayError(
                f"of {self.taken} requests that the trunk has taken, the last is not the silo's: a "
                "silo goes on with the very requests that it has sent, whose tensors must not be "
                "changed before they are answered"
            )

    def _let_go(self) -> None:
        """Its stream is gone: wait for another one, or end."""
        if self._is_over or self.is_finished:
            return
        if not self.hold:
            self.end(None)
            return
        logger.info(
            "a stream of silo %r broke off: its session is held for %g s", self.spec.silo, self.hold
        )
        self._expiry = self._loop.call_later(self.hold, self._expire)

    def _keep(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        logger.info("silo %r did not reconnect: its session is closed", self.spec.silo)
        self.end(None)

    async def _offload(self, num_bytes: int, work: Callable[[], Result]) -> Result:
        """Do `work` off the event loop if it handles many bytes."""
        if num_bytes <= _INLINE_BYTES:
            return work()
        return await self._loop.run_in_executor(self._codecs, work)


def _effort(reply: Reply) -> int:
    """Bytes to be encoded; a tensor on a GPU has to be waited for besides, whatever its size."""
    if isinstance(reply, BackwardReply | AdapterReply):
        return _INLINE_BYTES + 1
    if not isinstance(reply, Tensor):
        return 0
    return reply.nbytes if reply.device.type == "cpu" else max(reply.nbytes, _INLINE_BYTES + 1)
