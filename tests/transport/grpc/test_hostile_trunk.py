"""A trunk that lies to a silo that reconnects: every lie is one clear error, in time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch
from affine_backend import forward, spec
from hosting import nothing_left

from flower_split.errors import SequenceError, TrunkError, TrunkUnavailableError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkServicer, add_TrunkServicer_to_server
from flower_split.transport.grpc.handshake import welcome_frame
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.grpc.resuming import resumed_frame
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import SessionLimits
from flower_split.transport.rules import HopRules

SECONDS = 40.0
REQUESTS = 3
WELCOME = welcome_frame(SessionLimits(), reconnect_seconds=600.0)
Script = Callable[[int], Sequence[pb.ServerFrame]]
"""What a stream sends that comes after so many others."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flower_split.transport.grpc.channel.FIRST", 0.002)


def reply(number: int) -> pb.ServerFrame:
    """A right answer to the request of that number."""
    request = forward(number)
    (frame,) = encode_reply(request, request.hidden, HopRules(spec())).frames()
    return frame


class LyingTrunk(TrunkServicer):
    """Takes requests, and breaks every connection; a stream after the first sends a script's.

    Args:
        script: Of those streams.
        ends: Whether such a stream ends as if all were well, and does not break.
    """

    def __init__(self, script: Script, *, ends: bool = False) -> None:
        self._script = script
        self._ends = ends
        self._lock = threading.Lock()
        self.streams = 0

    def Session(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with self._lock:
            number, self.streams = self.streams, self.streams + 1
        first = next(request_iterator)
        if first.HasField("hello"):
            yield WELCOME
            for _ in range(REQUESTS):
                next(request_iterator)
        else:
            yield from self._script(number - 1)
            if self._ends:
                return
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


@contextmanager
def lied_to(script: Script, **options: Any) -> Iterator[tuple[LyingTrunk, list[Future[Any]]]]:
    """The trunk of that script, and what a silo waits for that has met it."""
    trunk = LyingTrunk(script, **options)
    with ThreadPoolExecutor(4, thread_name_prefix="odd-trunk") as pool:
        server = grpc.server(pool)
        add_TrunkServicer_to_server(trunk, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with nothing_left(), GrpcTransport(f"127.0.0.1:{port}", spec()) as transport:
                yield trunk, [transport.forward(forward(number)) for number in range(REQUESTS)]
        finally:
            server.stop(0).wait()


def failed(waiting: list[Future[Any]]) -> TrunkError:
    """The one error of all that is still waited for."""
    errors = {future.exception(SECONDS) for future in waiting}
    (error,) = errors - {None}
    assert isinstance(error, TrunkError)
    return error


def test_a_trunk_whose_count_goes_back_and_forth_is_not_followed_for_ever() -> None:
    with lied_to(lambda number: [resumed_frame(number % 2 + 1)]) as (trunk, waiting):
        error = failed(waiting)
        assert type(error) is WireError and "has taken 1 requests, expected 2 to 3" in str(error)
        assert trunk.streams == 4


def test_a_trunk_that_breaks_every_connection_is_given_up() -> None:
    with lied_to(lambda number: [resumed_frame(0)]) as (trunk, waiting):
        error = failed(waiting)
        assert type(error) is TrunkUnavailableError and "broke 5 times" in str(error)
        assert trunk.streams <= 8


def test_a_trunk_that_has_one_reply_a_connection_is_followed() -> None:
    with lied_to(lambda number: [resumed_frame(REQUESTS), reply(number)]) as (_, waiting):
        for number, future in enumerate(waiting):
            assert torch.equal(future.result(SECONDS), forward(number).hidden)


LIES: dict[str, tuple[Script, type[TrunkError], str]] = {
    "more than was sent": (lambda _: [resumed_frame(REQUESTS + 1)], WireError, "expected 0 to 3"),
    "a number that no session reaches": (
        lambda _: [resumed_frame(2**64 - 1)],
        *(WireError, "expected 0 to 3"),
    ),
    "a welcome": (lambda _: [WELCOME], WireError, "the first frame was no resumed"),
    "a frame of no kind": (lambda _: [pb.ServerFrame()], WireError, "was no resumed"),
    "a reply first": (lambda _: [reply(0)], WireError, "the first frame was no resumed"),
    "resumed twice": (lambda _: [resumed_frame(3)] * 2, SequenceError, "resumed"),
    "a reply twice": (
        lambda _: [resumed_frame(3), reply(0), reply(0)],
        *(SequenceError, "microbatch 0"),
    ),
    "replies in another order": (lambda _: [resumed_frame(3), reply(1)], SequenceError, "1"),
    "more replies than requests": (
        lambda _: [resumed_frame(3), *map(reply, range(3)), reply(2)],
        *(WireError, "a reply that was not asked for"),
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_one_clear_error(name: str) -> None:
    script, kind, message = LIES[name]
    with lied_to(script) as (trunk, waiting):
        if name.startswith("more replies"):
            assert all(future.exception(SECONDS) is None for future in waiting)
            return
        error = failed(waiting)
        assert type(error) is kind and message in str(error), repr(error)
        assert trunk.streams == 2


def test_a_stream_that_ends_without_a_word_is_no_session() -> None:
    with lied_to(lambda _: [], ends=True) as (trunk, waiting):
        error = failed(waiting)
        assert type(error) is WireError and "the first frame was no resumed" in str(error)
        assert trunk.streams == 2
