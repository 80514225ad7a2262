"""One silo's stream at the trunk: its session at the backend, and what is read, asked and written.

Three coroutines pass requests on through short queues, so that the next microbatch arrives and
the previous one leaves while the trunk computes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from flower_split.errors import FlowerSplitError, HandshakeError, TrunkError, TrunkUnavailableError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.compute.queue import mapped
from flower_split.server.tickets import Admission
from flower_split.transport.base import BackendSession, TrunkBackend
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.grpc.requests import RequestReader
from flower_split.transport.messages import (
    AdapterReply,
    Answerable,
    BackwardReply,
    Discard,
    DropCache,
    Finish,
    Release,
    Reply,
    Request,
    SessionSpec,
    SessionSummary,
    Ticket,
)
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import HopRules

logger = logging.getLogger(__name__)


class AdmittedSession:
    """Opens, asks and closes one backend session; closes it once, however its stream ends.

    Args:
        backend: Opens the session, which begins at once.
        spec: What the silo asks for.
        ticket: Who the silo is; claimed before this is made.
        admit: Asked before every request whether the ticket still counts.
    """

    def __init__(
        self,
        backend: TrunkBackend,
        spec: SessionSpec,
        ticket: Ticket | None,
        admit: Admission | None,
    ) -> None:
        self._ticket = ticket
        self._admit = admit
        self._opening = backend.open(spec, ticket)
        self._closed: Future[None] = Future()

    async def open(self) -> str:
        """Wait until the session is open; the tag of the session state that it resumes from.

        Raises:
            HandshakeError: the backend does not want the silo.
        """
        try:
            return (await asyncio.wrap_future(self._opening)).resumed
        except TrunkError:
            raise
        except FlowerSplitError as exc:
            raise HandshakeError(str(exc)) from exc

    async def ask(self, request: Request) -> Reply:
        """The backend's reply to `request`.

        Raises:
            TrunkError: the request failed, or the host has revoked the ticket.
        """
        self.check()
        try:
            return await asyncio.wrap_future(self._opening.result().submit(request))
        except torch.OutOfMemoryError as exc:
            raise mapped(exc) from exc

    def check(self) -> None:
        """Raise `TokenError` when the host has revoked the ticket."""
        if self._admit is not None:
            self._admit.check(self._ticket)

    def close(self) -> "Future[None]":
        """Close the session, however far it came; to be called once. The future never fails."""
        self._opening.cancel()  # does nothing once it has begun
        self._opening.add_done_callback(self._close_opened)
        return self._closed

    def _close_opened(self, opening: "Future[BackendSession]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._end()
            return
        try:
            closing = opening.result().close()
        except Exception:
            logger.exception("closing a session failed")
            self._end()
        else:
            closing.add_done_callback(self._end)

    def _end(self, closing: "Future[None] | None" = None) -> None:
        fault = None if closing is None else closing.exception()
        if fault is not None:
            logger.error("closing a session failed", exc_info=fault)
        if self._admit is not None:
            self._admit.spend(self._ticket)
        self._closed.set_result(None)


Result = TypeVar("Result")

# Below this many bytes, handing work to a thread costs more than doing it on the event loop.
_INLINE_BYTES = 1 << 16
# Requests that wait between two stages: enough to keep the trunk busy, few enough to bound memory.
_QUEUE_LENGTH = 2


class FrameWriter(Protocol):
    """What writes frames to the silo."""

    async def write(self, message: pb.ServerFrame) -> None:
        """Send one frame; waits while the silo does not keep up."""
        ...


class SessionStream:
    """Serves one session from after its Welcome to its end.

    Args:
        frames: What the silo sends.
        writer: Where replies go.
        session: At the backend, open.
        reader: Checks the silo's frames.
        rules: What the session's tensors look like.
        codecs: Executor for decoding and encoding large tensors.
        idle_timeout: Seconds without any progress after which the session ends.
    """

    def __init__(
        self,
        frames: AsyncIterator[pb.ClientFrame],
        writer: FrameWriter,
        session: AdmittedSession,
        reader: RequestReader,
        rules: HopRules,
        codecs: Executor,
        idle_timeout: float,
    ) -> None:
        self._frames = frames
        self._writer = writer
        self._session = session
        self._reader = reader
        self._rules = rules
        self._codecs = codecs
        self._idle_timeout = idle_timeout
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue(_QUEUE_LENGTH)
        self._replies: asyncio.Queue[tuple[Answerable, Reply] | None] = asyncio.Queue(_QUEUE_LENGTH)
        self._meter = ByteMeter()
        self._computing = False
        self._loop = asyncio.get_running_loop()
        self._progress = self._loop.time()

    async def serve(self) -> None:
        """Serve until Finish is answered or the silo's frames end.

        Raises:
            TrunkError: the session ended by a fault; already queued replies may be lost.
        """
        fault: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._read()), group.create_task(self._watch())]
                group.create_task(self._work())
                await self._write()
                for helper in helpers:
                    helper.cancel()
        except ExceptionGroup as faults:
            ours = faults.subgroup(TrunkError)
            fault = (ours or faults).exceptions[0]
        if fault is not None:
            raise fault

    async def _read(self) -> None:
        async for frame in self._frames:
            self._progress = self._loop.time()
            pending = self._reader.feed(frame)
            if pending is not None:
                for tensor in pending.assembler.announced:
                    self._meter.add(tensor.rule.role, tensor.num_bytes)
                request = await self._offload(pending.num_bytes, pending.build)
                await self._requests.put(request)
        await self._requests.put(None)

    async def _work(self) -> None:
        while (request := await self._requests.get()) is not None:
            self._computing = True
            reply = await self._session.ask(request)
            self._computing = False
            self._progress = self._loop.time()
            if not isinstance(request, Release | DropCache | Discard):
                await self._replies.put((request, reply))
            if isinstance(request, Finish):
                break
        await self._replies.put(None)

    async def _write(self) -> None:
        while (item := await self._replies.get()) is not None:
            request, reply = item
            if isinstance(reply, SessionSummary):
                reply = replace(reply, wire_bytes=self._meter.read())
            encode = partial(encode_reply, request, reply, self._rules)
            encoded = await self._offload(_effort(reply), encode)
            for outgoing in encoded.tensors:
                self._meter.add(outgoing.header.role, outgoing.header.num_bytes)
            for frame in encoded.frames():
                await self._writer.write(frame)
                self._progress = self._loop.time()

    async def _watch(self) -> None:
        """Raise when nothing moves any more, or when the host has revoked the ticket."""
        while True:
            await asyncio.sleep(min(1.0, self._idle_timeout / 4))
            self._session.check()
            quiet = self._loop.time() - self._progress
            if not self._computing and quiet > self._idle_timeout:
                raise TrunkUnavailableError(
                    f"the session was idle for {self._idle_timeout:g} s and was closed"
                )

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
