"""One stream of a session at the trunk: frames in, replies out, each at its own pace."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc.aio
from google.protobuf.message import DecodeError

from flower_split.errors import DeadlineError, TrunkError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.conversation import Conversation, LeftError
from flower_split.transport.grpc.replies import EncodedReply
from flower_split.transport.grpc.requests import PendingRequest, RequestReader


class FrameWriter(Protocol):
    """What writes frames to the silo."""

    async def write(self, message: pb.ServerFrame) -> None:
        """Send one frame; waits while the silo does not keep up."""
        ...


class BrokenLineError(Exception):
    """The connection broke."""


class SessionStream:
    """Carries one conversation, from after the stream's first frame.

    Args:
        frames: What the silo sends.
        writer: Where replies go.
        conversation: The session's.
        reader: Checks the silo's frames.
        greeting: Makes the answer to the first frame, once the session is open.
    """

    def __init__(
        self,
        frames: AsyncIterator[pb.ClientFrame],
        writer: FrameWriter,
        conversation: Conversation,
        reader: RequestReader,
        greeting: Callable[[], pb.ServerFrame],
    ) -> None:
        self.gone = asyncio.Event()
        """Set when it carries the session no more."""
        self._frames = aiter(frames)
        self._writer = writer
        self._conversation = conversation
        self._reader = reader
        self._greeting = greeting
        self._greeted = asyncio.Event()
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._reason: Exception = LeftError()
        self._has_ended = False

    def stop(self, reason: Exception) -> None:
        """Have `serve` end with `reason`."""
        self._reason = reason
        self._stopped.set()

    def wake(self) -> None:
        """There is something new to see in the conversation."""
        self._news.set()

    async def serve(self) -> None:
        """Serve until Finish is answered, the silo has left, or the stream or its frames end.

        Raises:
            TrunkError: why the stream ends; already queued replies may be lost.
            BrokenLineError: the connection broke.
        """
        fault: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._read()), group.create_task(self._end())]
                await self._write()
                for helper in helpers:
                    helper.cancel()
        except ExceptionGroup as faults:
            ours = faults.subgroup(TrunkError)
            fault = (ours or faults).exceptions[0]
        if fault is not None and not isinstance(fault, LeftError):
            raise fault

    async def _end(self) -> None:
        await self._stopped.wait()
        raise self._reason

    async def _read(self) -> None:
        await self._greeted.wait()
        conversation = self._conversation
        while (frame := await self._frame()) is not None:
            conversation.memory.acknowledge(frame.received)
            pending = self._reader.feed(frame)
            with conversation.progress.working(counts=False):  # what came in part may come again
                pending = pending or await self._rest()
                if pending is None:
                    break
                await conversation.take(pending)
        self._has_ended = True
        self._news.set()

    async def _rest(self) -> PendingRequest | None:
        """The request that has begun to arrive, in the time that its size is given."""
        num_bytes = self._reader.awaited_bytes
        seconds = self._conversation.deadlines.of(num_bytes)
        try:
            async with asyncio.timeout(seconds):
                while (frame := await self._frame()) is not None:
                    pending = self._reader.feed(frame)
                    if pending is not None:
                        return pending
        except TimeoutError:
            raise DeadlineError(
                f"a request of {num_bytes} bytes was not complete within {seconds:.0f} s"
            ) from None
        return None

    async def _frame(self) -> pb.ClientFrame | None:
        """The next frame; None where there are no more, or the silo has left."""
        with breaking():
            frame = await anext(self._frames, None)
        if frame is not None and frame.WhichOneof("frame") == "leave":
            self._conversation.end(None)
            return None
        return frame

    async def _write(self) -> None:
        await self._conversation.opened.wait()
        await self._send([self._greeting()], 0, counts=False)
        self._greeted.set()
        memory = self._conversation.memory
        begun = memory.num_begun
        while (reply := await self._next()) is not None:
            self._conversation.note_sending()
            num_bytes = sum(tensor.payload.nbytes for tensor in reply.tensors)
            begun, is_new = memory.num_begun, memory.num_begun > begun
            await self._send(reply.frames(), num_bytes, counts=is_new)

    async def _next(self) -> EncodedReply | None:
        """The next reply; None when there will be none."""
        conversation = self._conversation
        while True:
            self._news.clear()
            reply = conversation.memory.next()
            if reply is not None:
                return reply
            if conversation.is_finished or (self._has_ended and conversation.is_settled):
                return None
            await self._news.wait()

    async def _send(
        self, frames: Iterable[pb.ServerFrame], num_bytes: int, *, counts: bool
    ) -> None:
        """Write `frames` in the time that a reply of that size is given.

        Args:
            frames: All of a reply.
            num_bytes: Of its tensors.
            counts: Whether it is progress: what is sent once more is none.
        """
        seconds = self._conversation.deadlines.of(num_bytes)
        with self._conversation.progress.working(counts=counts):
            try:
                async with asyncio.timeout(seconds):
                    for frame in frames:
                        with breaking():
                            await self._writer.write(frame)
            except TimeoutError:
                raise DeadlineError(
                    f"a reply of {num_bytes} bytes was not taken within {seconds:.0f} s"
                ) from None


@contextmanager
def breaking() -> Iterator[None]:
    """Raise what gRPC raises by what it means."""
    try:
        yield
    except grpc.aio.BaseError as exc:
        raise BrokenLineError from exc
    except DecodeError as exc:
        raise WireError("bytes that are no frame of this protocol") from exc
