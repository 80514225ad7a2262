"""The Control service: takes calls of strategies whose certificates are known, and answers them.

The event loop only moves frames; calls are done in threads of their own, one at a time for a run.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import DecodeError

import flower_split
from flower_split.control.calls import Answered, RunCalls
from flower_split.control.content import ArrivingContent, Content, pieces
from flower_split.control.served_run import ServedRun
from flower_split.control.served_runs import ServedRuns
from flower_split.control.status import to_status
from flower_split.errors import (
    DeadlineError,
    HandshakeError,
    TokenError,
    TrunkBusyError,
    WireError,
)
from flower_split.proto import control_pb2 as pb
from flower_split.proto.control_pb2_grpc import ControlServicer
from flower_split.server.grpc.peers import thumbprint

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1

Packed: TypeAlias = tuple[pb.Content | None, bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[pb.CallFrame, pb.AnswerFrame]"

_FRAME_SECONDS = 30.0
"""Within which the next frame of a call must have come, and the strategy must have taken one."""
_MOST_SETTINGS = 1 << 20
_MOST_TEXTS = {"invite": 4 << 20, "load_states": 4 << 20}
"""Bytes of the text of calls that have one: what is read of it takes many times as much memory."""
_WITH_TENSORS = frozenset({"begin", "invite", "load_states"})
"""Calls that bring any."""
MOST_CALLS = 16
"""Of one strategy at once."""


class ControlService(ControlServicer):
    """The service on `runs`, for one event loop.

    Args:
        runs: The runs.
        calls: Does the calls.
        strategies: Thumbprints of the certificates that may call; None takes everyone.
        workers: Where calls are done.
    """

    def __init__(
        self,
        runs: ServedRuns,
        calls: RunCalls,
        strategies: Collection[str] | None,
        workers: Executor,
    ) -> None:
        self._runs = runs
        self._calls = calls
        self._strategies = None if strategies is None else frozenset(strategies)
        self._workers = workers
        self._calling = Counter[str]()
        self._opening = defaultdict[str, asyncio.Lock](asyncio.Lock)

    async def Do(  # noqa: N802 - the name that the generated base class calls
        self, request_iterator: AsyncIterator[pb.CallFrame], context: Context
    ) -> None:
        """Answer one call."""
        try:
            await self._answer(request_iterator, context)
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            await context.abort(
                *to_status(DeadlineError(f"a call did not go on for {_FRAME_SECONDS:g} s"))
            )
        except DecodeError:
            await context.abort(*to_status(WireError("bytes that are no call")))
        except Exception as error:
            logger.info("a call was refused: %s", type(error).__name__)
            await context.abort(*to_status(error))

    async def _answer(self, frames: AsyncIterator[pb.CallFrame], context: Context) -> None:
        owner = thumbprint(context)
        if self._strategies is not None and owner not in self._strategies:
            raise TokenError(
                "this certificate is not one of a strategy's: have the service's operator name it "
                "with --strategy"
            )
        if self._calling[owner] >= MOST_CALLS:
            raise TrunkBusyError(
                f"{MOST_CALLS} calls of this strategy are on their way, its limit: try later"
            )
        self._calling[owner] += 1
        try:
            await self._called(frames, context, owner)
        finally:
            self._calling[owner] -= 1

    async def _called(
        self, frames: AsyncIterator[pb.CallFrame], context: Context, owner: str
    ) -> None:
        async with asyncio.timeout(_FRAME_SECONDS):
            first = await anext(aiter(frames), None)
        if first is None:
            raise WireError("a call without a frame")
        call = first.call
        check_version(call)
        kind = call.WhichOneof("kind") or ""
        if kind == "hello":
            await self._send(self._calls.hello(), context)
        elif kind == "open":
            async with self._opening[owner]:
                content = await _content(first, frames, most_text=_MOST_SETTINGS, most_tensors=0)
                answered = await self._work(self._calls.open, content, owner)
                await self._send(answered, context)
        else:
            run = self._runs.find(call.run, owner)
            run.calls += 1
            try:
                if first.call.HasField("content"):
                    async with run.arriving:
                        await self._do(run, kind, first, frames, context)
                else:
                    await self._do(run, kind, first, frames, context)
            finally:
                run.calls -= 1
                run.touch()

    async def _do(
        self,
        run: ServedRun,
        kind: str,
        first: pb.CallFrame,
        frames: AsyncIterator[pb.CallFrame],
        context: Context,
    ) -> None:
        most = 0
        if kind in _WITH_TENSORS:
            run.check_room(first.call.content.tensor_bytes)
            most = run.room
        texts = _MOST_TEXTS.get(kind, 0)
        content = await _content(first, frames, most_text=texts, most_tensors=most)
        async with run.answering:
            answered = await self._work(self._calls.do, run, first.call, content)
            packed = await self._packed(answered[1])
        await _sent(answered[0], packed, context)

    async def _work(self, work: Callable[..., Answered], *arguments: Any) -> Answered:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, work, *arguments)

    async def _packed(self, content: Content) -> Packed:
        if content.is_empty:
            return None, b""
        return await asyncio.get_running_loop().run_in_executor(self._workers, content.packed)

    async def _send(self, answered: Answered, context: Context) -> None:
        answer, content = answered
        await _sent(answer, await self._packed(content), context)


async def _sent(answer: pb.Answer, packed: Packed, context: Context) -> None:
    header, data = packed
    if header is not None:
        answer.content.CopyFrom(header)
    frame = pb.AnswerFrame(answer=answer)
    for piece in pieces(data):
        frame.piece = piece
        await _written(context, frame)
        frame = pb.AnswerFrame()
    if not data:
        await _written(context, frame)


async def _written(context: Context, frame: pb.AnswerFrame) -> None:
    async with asyncio.timeout(_FRAME_SECONDS):
        await context.write(frame)


async def _content(
    first: pb.CallFrame,
    frames: AsyncIterator[pb.CallFrame],
    *,
    most_text: int,
    most_tensors: int,
) -> Content:
    """The content that a call's first frame announces, once it is whole."""
    if not first.call.HasField("content"):
        return Content()
    arriving = ArrivingContent(first.call.content, most_text=most_text, most_tensors=most_tensors)
    frame: pb.CallFrame | None = first
    while frame is not None:
        arriving.add(frame.piece)
        if arriving.complete:
            return arriving.content()
        async with asyncio.timeout(_FRAME_SECONDS):
            frame = await anext(aiter(frames), None)
    raise WireError("a call ended in the middle of its content")


def check_version(call: pb.Call) -> None:
    """Raise `HandshakeError` where the strategy is of another version."""
    ours = PROTOCOL_VERSION, flower_split.__version__
    theirs = call.protocol_version, call.version
    if ours != theirs:
        raise HandshakeError(
            f"the service is flower-split {ours[1]} (control protocol {ours[0]}), and the strategy "
            f"{theirs[1][:40]} (control protocol {theirs[0]}): install the same version for both"
        )
