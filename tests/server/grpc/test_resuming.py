"""Resuming by hand: what goes on, what is refused, and what a refusal leaves as it was."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from hosting import eventually, hosting
from raw_silo import RawSilo

from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.resuming import (
    MOST_DIGESTS,
    START,
    ResumePoint,
    digest_after,
    resume_frame,
)
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import Finish, Request, SessionLimits, StepRequest
from flower_split.transport.rules import HopRules

SECRET = bytes(range(32))
LIMITS = ServiceLimits(session=SessionLimits(max_in_flight=1), reconnect_timeout=600.0)
LOST = (grpc.StatusCode.UNAVAILABLE, "TrunkUnavailableError")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "WireError")
REPLAYED = (grpc.StatusCode.ABORTED, "ReplayError")


def frames(request: Request) -> list[pb.ClientFrame]:
    return list(encode_request(request, HopRules(spec())).frames())


def digests(*requests: Request) -> tuple[bytes, ...]:
    """Before the first one, and of each."""
    found = [START]
    for request in requests:
        found.append(digest_after(found[-1], frames(request)[0]))
    return tuple(found)


def step(number: int, rate: float = 0.5) -> StepRequest:
    return StepRequest(step=number, learning_rate=rate)


def hello(attempt: int = 0, **changes: Any) -> pb.ClientFrame:
    return hello_frame(spec(**changes), None, secret=SECRET, attempt=attempt)


def resume(attempt: int = 1, secret: bytes = SECRET, **changes: Any) -> pb.ClientFrame:
    """A silo that has sent one step and received nothing."""
    point = ResumePoint(received=0, first=0, digests=digests(step(0)))
    return resume_frame(secret, attempt, replace(point, **changes))


@pytest.fixture
def backend() -> AffineBackend:
    return AffineBackend()


@pytest.fixture
def server(backend: AffineBackend) -> Iterator[TrunkServer]:
    with hosting(backend, limits=LIMITS) as server:
        yield server


@pytest.fixture
def broken(server: TrunkServer, backend: AffineBackend) -> TrunkServer:
    """A server whose one session has taken a step and lost its stream."""
    with RawSilo(server.address) as silo:
        silo.send(hello(), *frames(step(0)))
        assert silo.read().HasField("welcome") and silo.read().HasField("step")
    return server


def goes_on(server: TrunkServer, attempt: int = 9) -> bool:
    """Whether the session does, from where it was."""
    with RawSilo(server.address) as silo:
        silo.send(resume(attempt))
        resumed, reply = silo.read(), silo.read()
        assert resumed.resumed.taken == 1 and reply.step.norms == [0.5]
        silo.send(*frames(step(1)), *frames(Finish()))
        assert silo.read().HasField("step")
        return silo.read().summary.steps == 2


def test_a_step_that_was_taken_is_answered_from_memory(
    broken: TrunkServer, backend: AffineBackend
) -> None:
    assert goes_on(broken)
    assert eventually(lambda: backend.count("close") == 1)
    assert [name for name, _ in backend.events] == ["open", "step", "step", "finish", "close"]


def test_a_session_can_be_gone_on_with_again_and_again(
    broken: TrunkServer, backend: AffineBackend
) -> None:
    for attempt in range(1, 6):
        with RawSilo(broken.address) as silo:
            silo.send(resume(attempt))
            assert silo.read().resumed.taken == 1 and silo.read().HasField("step")
    assert goes_on(broken)
    assert backend.count("step") == 2


ATTACKS: dict[str, tuple[pb.ClientFrame, tuple[grpc.StatusCode, str], str]] = {
    "another step": (
        resume(digests=digests(step(0, rate=0.25))),
        *(REPLAYED, "the last is not the silo's"),
    ),
    "fewer requests than were taken": (
        resume(digests=digests()),
        *(REPLAYED, "the last is not the silo's"),
    ),
    "more requests than were taken": (
        resume(first=2, digests=digests()),
        *(REPLAYED, "the last is not the silo's"),
    ),
    "another hello": (hello(1, seed=5), REPLAYED, "another one"),
    "the hello, though requests were taken": (
        hello(1),
        *(REPLAYED, "the last is not the silo's"),
    ),
    "replies that were never sent": (
        resume(received=2),
        *(INVALID, "2 replies received, and 1 were sent"),
    ),
    "a number that no session reaches": (resume(first=2**64 - 1), REPLAYED, "not the silo's"),
    "no digests": (resume(digests=()), INVALID, "0 digests"),
    "short digests": (resume(digests=(b"x",)), INVALID, "another length"),
    "many digests": (
        resume(digests=(START,) * (MOST_DIGESTS + 1)),
        *(INVALID, "4097 digests of requests, expected 1 to 4096"),
    ),
    "a short secret": (resume(secret=SECRET[:31]), INVALID, "a secret of 31 bytes"),
    "no secret": (resume(secret=b""), INVALID, "a secret of 0 bytes"),
    "another secret": (resume(secret=bytes(32)), LOST, "the session is lost"),
    "an attempt that comes late": (resume(attempt=0), LOST, "goes on over a later stream"),
    "another version": (
        pb.ClientFrame(resume=pb.Resume(protocol_version=99, secret=SECRET, digests=[START])),
        *((grpc.StatusCode.FAILED_PRECONDITION, "HandshakeError"), "protocol_version"),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_resume_costs_its_sender_alone(
    broken: TrunkServer, backend: AffineBackend, name: str
) -> None:
    attack, ending, message = ATTACKS[name]
    with GrpcTransport(broken.address, spec()) as bystander:
        bystander.forward(forward(0)).result(20)
        with RawSilo(broken.address) as silo:
            assert silo.send(attack).ending()[:2] == ending
            assert message in silo.call.details()
        assert broken.num_sessions == 2 and goes_on(broken)
        g1 = bystander.backward(backward(0)).result(20)
        assert torch.equal(g1, backward(0).grad * 3)  # type: ignore[arg-type]


def test_a_session_that_was_never_there_and_one_that_was_too_long_are_told_alike(
    backend: AffineBackend,
) -> None:
    limits = replace(LIMITS, reconnect_timeout=0.1)
    with hosting(backend, limits=limits) as server:
        with RawSilo(server.address) as silo:
            silo.send(hello())
            silo.read()
        assert eventually(lambda: server.num_sessions == 0)
        said = set()
        for secret in (SECRET, bytes(32)):
            with RawSilo(server.address) as silo:
                assert silo.send(resume(secret=secret)).ending()[:2] == LOST
                said.add(silo.call.details())
        assert len(said) == 1


@pytest.mark.medium
def test_a_silo_that_only_reconnects_is_idle(backend: AffineBackend) -> None:
    """Though its reply is sent once more each time."""
    with hosting(backend, limits=replace(LIMITS, idle_timeout=1.0)) as server:
        with RawSilo(server.address) as silo:
            silo.send(hello(), *frames(step(0)))
            assert silo.read().HasField("welcome") and silo.read().HasField("step")
        began, attempt, ending = time.monotonic(), 0, ""
        while not ending and time.monotonic() < began + 20:
            attempt += 1
            with RawSilo(server.address) as silo:
                silo.send(resume(attempt))
                try:
                    assert silo.read().resumed.taken == 1 and silo.read().HasField("step")
                except (grpc.RpcError, StopIteration):
                    ending = silo.ending()[1]
            time.sleep(0.02)
        assert attempt > 3 and ending == "DeadlineError"
        assert eventually(lambda: server.num_sessions == 0)
        assert (backend.count("step"), backend.count("close")) == (1, 1)


def test_a_later_stream_cuts_off_an_earlier_one(server: TrunkServer) -> None:
    with RawSilo(server.address) as first, RawSilo(server.address) as second:
        first.send(hello(), *frames(step(0)))
        assert first.read().HasField("welcome") and first.read().HasField("step")
        second.send(resume(2))
        assert second.read().resumed.taken == 1
        assert first.ending()[:2] == LOST and "a later stream" in first.call.details()
        with RawSilo(server.address) as late:  # which was under way for longer
            assert late.send(resume(1)).ending()[:2] == LOST
        second.send(*frames(step(1)))
        assert second.read().step.step == 0 and second.read().step.step == 1


def test_several_resumes_at_once(broken: TrunkServer, backend: AffineBackend) -> None:
    """The latest has the session, in whatever order they come and wait for one another."""
    count = 6
    for began in range(0, 8 * count, count):
        with ExitStack() as stack:
            silos = [stack.enter_context(RawSilo(broken.address)) for _ in range(count)]
            for attempt, silo in enumerate(silos, start=began + 1):
                silo.send(resume(attempt))
            *others, last = silos
            assert last.read().resumed.taken == 1 and last.read().step.step == 0
            for silo in others:
                assert silo.ending()[:2] == LOST
    assert goes_on(broken, 100)
    assert backend.count("open") == 1 and backend.count("step") == 2


def test_replies_that_nobody_acknowledges_are_forgotten_in_time(
    server: TrunkServer, backend: AffineBackend
) -> None:
    """And a silo that could need them has lost its session; one that acknowledges has not."""
    steps = [step(number) for number in range(80)]
    with RawSilo(server.address) as silo:
        silo.send(hello())
        silo.read()
        for one in steps:
            silo.send(*frames(one))
            assert silo.read().HasField("step")
    with RawSilo(server.address) as silo:
        assert silo.send(resume(1, digests=digests(*steps))).ending()[:2] == LOST
    with RawSilo(server.address) as silo:
        silo.send(resume(2, received=75, first=75, digests=digests(*steps)[75:]))
        assert silo.read().resumed.taken == 80
        assert [silo.read().step.step for _ in range(5)] == [75, 76, 77, 78, 79]
    assert backend.count("step") == 80


def test_a_silo_has_no_more_replies_than_it_was_sent(server: TrunkServer) -> None:
    (frame,) = frames(step(0))
    frame.received = 1
    with RawSilo(server.address) as silo:
        assert silo.send(hello(), frame).ending()[:2] == INVALID
        assert "1 replies received, and 0 were sent" in silo.call.details()


def test_a_request_that_came_in_part_was_never_there(
    server: TrunkServer, backend: AffineBackend
) -> None:
    (whole,) = frames(forward(0))
    part = pb.ClientFrame.FromString(whole.SerializeToString())
    part.chunks[0].data = part.chunks[0].data[:100]
    with RawSilo(server.address) as silo:
        silo.send(hello(), part)
        silo.read()
    with RawSilo(server.address) as silo:
        silo.send(resume(digests=(START,)))
        assert silo.read().resumed.taken == 0
        silo.send(*frames(forward(0)))
        assert silo.read().HasField("forward")
    assert backend.count("forward") == 1


def test_a_silo_that_leaves_is_not_waited_for(broken: TrunkServer, backend: AffineBackend) -> None:
    with RawSilo(broken.address) as silo:
        silo.send(resume(), pb.ClientFrame(leave=pb.Leave()))
        assert silo.ending()[0] is grpc.StatusCode.OK
    assert broken.num_sessions == 0 and backend.count("close") == 1
    with RawSilo(broken.address) as silo:
        assert silo.send(resume(2)).ending()[:2] == LOST


def test_a_stream_without_a_secret_is_all_that_its_session_has(
    server: TrunkServer, backend: AffineBackend
) -> None:
    with RawSilo(server.address) as silo:
        silo.send(hello_frame(spec(), None))
        assert silo.read().welcome.reconnect_seconds == 0
    assert eventually(lambda: backend.count("close") == 1, 5)


def test_no_secret_is_logged(broken: TrunkServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="flower_split")
    assert goes_on(broken)
    time.sleep(0.05)
    for said in (SECRET.hex(), str(SECRET), SECRET.decode("latin-1")):
        assert said not in caplog.text
