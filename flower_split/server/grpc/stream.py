"""One stream at the trunk: reading, asking and writing, each at its own pace.

Three coroutines pass requests on through short queues, so that the next microbatch arrives and
the previous one leaves while the trunk computes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from flower_split.errors import TrunkError, TrunkUnavailableError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.admitted_session import AdmittedSession
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.grpc.request_reader import RequestReader
from flower_split.transport.messages import (
    Answerable,
    DropCache,
    Finish,
    Release,
    Reply,
    Request,
    SessionSummary,
)
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import HopRules

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
            if not isinstance(request, Release | DropCache):
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
    if not isinstance(reply, Tensor):
        return 0
    return reply.nbytes if reply.device.type == "cpu" else max(reply.nbytes, _INLINE_BYTES + 1)
