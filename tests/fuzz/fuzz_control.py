"""The harness of a trunk service's control port: any calls of a strategy that has a certificate.

Good calls of a run are damaged, in their messages, texts, tensors and pieces, and answered by the
service's own code. Whatever a strategy sends, it gets an answer or a documented error, and the run
of another one is as it was.
"""

import asyncio
import atexit
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import torch
from fuzz_choices import TEXTS, Choices
from fuzz_messages import mutate
from steps import run_config
from tiny_checkpoint import save_tiny_model

import flower_split
from flower_split.config.run_config import read_run_config
from flower_split.control.calls import RunCalls
from flower_split.control.content import MOST_TEXT, ArrivingContent, Content
from flower_split.control.messages import invite_message, start_text
from flower_split.control.run_bounds import RunBounds
from flower_split.control.run_settings import told_settings
from flower_split.control.served_model import ServedModel
from flower_split.control.served_runs import ServedRuns
from flower_split.control.served_trunk import ServedTrunk
from flower_split.control.service import PROTOCOL_VERSION, ControlService
from flower_split.proto import control_pb2 as pb
from flower_split.server.hosting.resolving import load_run_trunk
from flower_split.server.hosting.run_trunk import Invitee, SiloChannel
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.grpc.status import ERROR_KEY

_KINDS = (
    *("begin", "invite", "look", "collect", "accept", "discard", "connected", "read_shared"),
    *("read_states", "load_states", "hello", "open", "close"),
)
_MOST_CALLS = 8
_RARE = 63
"""Of 64: opening takes a hundred times as long as any other call."""
_CODES = frozenset(
    {
        *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION),
        *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED),
        *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED),
    }
)


class _AbortedError(Exception):
    """What ends a call with a status, as gRPC does."""


class _Stream:
    """One call as the service sees it, and what it answers."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = iter(frames)
        self.answers: list[pb.AnswerFrame] = []

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {}

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> pb.CallFrame:
        for frame in self._frames:
            return pb.CallFrame.FromString(frame)
        raise StopAsyncIteration

    async def write(self, frame: pb.AnswerFrame) -> None:
        self.answers.append(pb.AnswerFrame.FromString(frame.SerializeToString()))

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        assert code in _CODES, code
        assert len(details) <= 1024
        assert dict(metadata)[ERROR_KEY] != "ServiceError", "the service failed"
        raise _AbortedError


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


@cache
def _served() -> tuple[ServedRuns, ControlService, dict[str, Any]]:
    """A service, and the settings of its runs."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    values = run_config(save_tiny_model(Path(folder.name) / "model", "llama"))
    config = read_run_config(values)
    runs = ServedRuns(
        ServedTrunk([load_run_trunk(config)]),
        ServedModel.of_run(config),
        config.model.name,
        RunBounds(max_runs=3, max_bytes=1 << 20),
    )
    workers = ThreadPoolExecutor(1)
    calls = RunCalls(runs, SiloChannel(address="localhost:1", tls=False))
    return runs, ControlService(runs, calls, None, workers), told_settings(config)


@cache
def _run() -> tuple[bytes, Mapping[str, torch.Tensor], bytes, str]:
    """A run's secret and its trunk's tensors, and the secret and a digest of one beside it."""
    opened = []
    for _ in range(2):
        answer, content = _good("open", Content(text=_served()[2]))
        opened.append((answer.opened.run, content))
    (first, layout), (beside, _) = opened
    names = layout.text["trunk"]
    start = {name: layout.tensors[name] for name in names}
    _good("begin", Content(), run=beside)
    return first, start, beside, _digest(beside)


def _digest(run: bytes) -> str:
    answer, content = _good("read_states", Content(), run=run)
    looked, _ = _good("look", Content(), run=run)
    return repr((answer.WhichOneof("kind"), content.text, looked.looked.waiting))


def _good(kind: str, content: Content, *, run: bytes = b"") -> tuple[pb.Answer, Content]:
    stream = _Stream(_frames(_call(kind, run), content))
    _loop().run_until_complete(_served()[1].Do(stream, stream))
    return _whole(stream)


def _whole(stream: _Stream) -> tuple[pb.Answer, Content]:
    answer = stream.answers[0].answer
    if not answer.HasField("content"):
        return answer, Content()
    arriving = ArrivingContent(answer.content, most_text=MOST_TEXT, most_tensors=1 << 30)
    for frame in stream.answers:
        arriving.add(frame.piece)
    return answer, arriving.content()


def _call(kind: str, run: bytes) -> pb.Call:
    call = pb.Call(protocol_version=PROTOCOL_VERSION, version=flower_split.__version__, run=run)
    getattr(call, kind).SetInParent()
    return call


def _frames(call: pb.Call, content: Content) -> list[bytes]:
    header, data = content.packed()
    if header is not None:
        call.content.CopyFrom(header)
    return [pb.CallFrame(call=call, piece=data).SerializeToString()]


def control(data: bytes) -> None:
    """Some calls, each with or without damage, of a run and of none."""
    choices = Choices(data)
    runs, service, _ = _served()
    secret, start, beside, before = _run()
    names = [bytes([number]) * 16 for number in range(3)]
    for _ in range(_MOST_CALLS):
        if not choices.more:
            break
        kind = choices.of(_KINDS)
        if kind in ("close", "open") and choices.below(64) != _RARE:
            kind = "look"
        call = _call(
            kind, secret if choices.byte() < 250 else choices.of((b"", beside[:31], names[0]))
        )
        content = _content(kind, call, choices, names, start)
        stream = _Stream(_damaged(call, content, choices))
        try:
            _loop().run_until_complete(service.Do(stream, stream))
        except _AbortedError:
            continue
        if stream.answers[0].answer.WhichOneof("kind") == "opened":
            _good("close", Content(), run=stream.answers[0].answer.opened.run)
    for run in runs.all:
        if run.secret == secret:
            for name in [*run.sessions]:
                run.discard(name)
            assert run.room == run.quota.max_bytes
            run.hosted.load_session_states(())
    if all(run.secret != secret for run in runs.all):
        _good("close", Content(), run=beside)
        _run.cache_clear()
        return
    assert _digest(beside) == before


def _content(
    kind: str, call: pb.Call, choices: Choices, names: list[bytes], start: Mapping[str, Any]
) -> Content:
    if kind in ("collect", "accept", "discard"):
        getattr(call, kind).session = choices.of(names)
    if kind == "connected":
        call.connected.node_ids.extend([choices.number() % 2**64 for _ in range(choices.below(4))])
    if kind == "invite":
        invitee = Invitee(run_id=1, node_id=2, server_round=3, purpose="train", seconds=60.0)
        known = choices.yes()
        call.invite.CopyFrom(
            invite_message(choices.of(names), invitee, choices.below(3), known=known)
        )
        text = start_text(TrunkStart(tensors=start))
        return Content(
            text=_changed(text, choices), tensors={} if known else _tensors(start, choices)
        )
    if kind == "begin":
        return Content(tensors=_tensors(start, choices))
    if kind == "load_states":
        state = {"silo": "a", "round": 1, "tag": "t", "scale": 1.0, "scaling": None}
        states = [_changed(dict(state), choices) for _ in range(choices.below(3))]
        tensors = {
            f"{choices.below(3) - 1} {choices.of('mpx')} {name}": tensor
            for name, tensor in _tensors(start, choices).items()
        }
        return Content(text=_changed(states, choices), tensors=tensors)
    if kind == "open":
        return Content(text=_changed(dict(_served()[2]), choices))
    return Content()


def _changed(value: Any, choices: Choices) -> Any:
    """A JSON value with a part of it replaced."""
    if not choices.yes():
        return value
    if isinstance(value, dict) and value and choices.below(4):
        key = choices.of([*value])
        return {**value, key: _changed(value[key], choices)}
    if isinstance(value, list) and value and choices.below(4):
        return [*value[1:], _changed(value[0], choices)]
    others = (
        *(None, True, [], {}, [[]], {"r": 4}, [None], -1, 0, 7),
        *(10**30, 2**63, 1e308, float("nan"), float("inf"), choices.text(), choices.float()),
    )
    return choices.of((*others, choices.of(TEXTS)))


def _tensors(start: Mapping[str, torch.Tensor], choices: Choices) -> dict[str, torch.Tensor]:
    held = dict(start)
    for _ in range(choices.below(3)):
        name, action = choices.of([*held]) if held else "x", choices.below(5)
        if action == 0:
            held.pop(name, None)
        elif action == 1:
            held[name] = torch.full((choices.below(5), choices.below(5)), _float(choices))
        elif action == 2:
            held[choices.text()[:2000]] = torch.zeros(1)
        elif action == 3 and name in held:
            held[name] = torch.full_like(held[name], _float(choices))
    return held


def _float(choices: Choices) -> float:
    return float(torch.tensor(choices.float(), dtype=torch.float64).float())


def _damaged(call: pb.Call, content: Content, choices: Choices) -> list[bytes]:
    if choices.yes():
        return _frames(call, content)
    header, data = content.packed()
    if header is not None:
        call.content.CopyFrom(header)
    for _ in range(choices.below(3)):
        mutate(call, choices)
    if choices.yes():
        data = bytearray(data)
        for _ in range(choices.below(4) if data else 0):
            data[choices.below(len(data))] = choices.byte()
        data = bytes(data)
        if choices.yes():
            call.content.crc32 = zlib.crc32(data)
    cut = choices.below(len(data) + 1)
    frames = [pb.CallFrame(call=call, piece=data[:cut]), pb.CallFrame(piece=data[cut:])]
    told = [frame.SerializeToString() for frame in frames[: 1 + choices.below(2)]]
    if choices.byte() > 240:
        told[0] = told[0][: choices.below(len(told[0]))] + choices.bytes(20)
    return told


def _seeds() -> list[bytes]:
    number = {kind: place for place, kind in enumerate(_KINDS)}
    plain = [bytes([number[kind], _RARE, 0, 1, 1, 1]) for kind in ("open", "close")]
    plain += [bytes([place, 0, 1, 1, 1, 1, 1]) for place in range(len(_KINDS) - 2)]
    order = ("begin", "invite", "look", "collect", "accept", "read_states", "discard")
    return [*plain, b"".join(bytes([number[kind], 0, 0, 0, 0, 0, 1]) for kind in order)]


HARNESSES = {"control": control}
SEEDS = {"control": _seeds}
