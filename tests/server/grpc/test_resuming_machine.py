"""A session over streams that break, against a model: everything is done once and in order."""

import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from hosting import eventually, hosting
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from raw_silo import RawSilo

from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.replies import ReplyReader
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.resuming import START, ResumePoint, digest_after, resume_frame
from flower_split.transport.messages import (
    Answerable,
    BackwardRequest,
    DropCache,
    ForwardRequest,
    Release,
    Request,
    StepReply,
    StepRequest,
    Unanswered,
)
from flower_split.transport.rules import HopRules

SECRET = bytes(range(32))
RULES = HopRules(spec())
AHEAD = 6
"""Requests that may be under way; the trunk's flow control never stops so few."""


def event(request: Request) -> tuple[str, int]:
    """As the backend notes it."""
    match request:
        case ForwardRequest():
            return "forward", request.microbatch
        case BackwardRequest():
            return "backward", request.microbatch
        case Release():
            return "release", request.microbatch
        case StepRequest():
            return "step", request.step
        case DropCache():
            return "drop_cache", request.cache_id
        case _:
            raise TypeError(request)


class ResumingMachine(RuleBasedStateMachine):
    """A silo by hand: `sent` is all that it ever wanted, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = AffineBackend()
        self.hosted = hosting(self.backend, limits=ServiceLimits(reconnect_timeout=600.0))
        self.server = self.hosted.__enter__()
        self.sent: list[Request] = []
        self.digests = [START]
        self.received = 0
        self.attempt = 0
        self.step = 0
        self.newest = -1
        self.waiting: list[int] = []
        self.silo: RawSilo | None = RawSilo(self.server.address)
        self.silo.send(hello_frame(spec(), None, secret=SECRET))
        assert self.silo.read().HasField("welcome")

    def teardown(self) -> None:
        if self.silo is None:
            self.resume(back=0)
        while self.owed:
            self.read()
        assert self.silo is not None
        complete = eventually(lambda: len(self.done) == len(self.sent))
        self.silo.close()
        self.hosted.__exit__(None, None, None)
        self.is_in_order()
        assert complete

    @property
    def answerable(self) -> list[Answerable]:
        return [request for request in self.sent if not isinstance(request, Unanswered)]

    @property
    def owed(self) -> int:
        return len(self.answerable) - self.received

    @property
    def done(self) -> list[tuple[str, int | None]]:
        return [one for one in self.backend.events if one[0] not in ("open", "close")]

    def send(self, request: Request) -> None:
        head, *rest = encode_request(request, RULES).frames()
        self.digests.append(digest_after(self.digests[-1], head))
        head.received = self.received
        self.sent.append(request)
        if self.silo is not None:
            self.silo.send(head, *rest)

    def read(self) -> None:
        assert self.silo is not None
        request = self.answerable[self.received]
        reader = ReplyReader(request, RULES)
        while not reader.feed(self.silo.read()):
            pass
        reply = reader.reply()
        match request:
            case ForwardRequest():
                assert torch.equal(reply, request.hidden * 3 + 1)  # type: ignore[arg-type]
            case BackwardRequest():
                assert torch.equal(reply, request.grad * 3)  # type: ignore[arg-type]
            case _:
                assert reply == StepReply(norms=(0.5,))
        self.received += 1

    def known(self) -> int:
        """Requests that the trunk must have taken, as it has answered the last of them."""
        answered = 0
        for number, request in enumerate(self.sent):
            if answered == self.received:
                return number
            answered += not isinstance(request, Unanswered)
        return len(self.sent)

    def resume(self, back: int) -> None:
        self.attempt += 1
        first = max(0, self.known() - back)
        point = ResumePoint(
            received=self.received, first=first, digests=tuple(self.digests[first:])
        )
        self.silo = RawSilo(self.server.address)
        self.silo.send(resume_frame(SECRET, self.attempt, point))
        taken = self.silo.read().resumed.taken
        assert self.known() <= taken <= len(self.sent)
        for request in self.sent[taken:]:
            self.silo.send(*encode_request(request, RULES).frames())

    under_way = precondition(lambda self: self.owed < AHEAD)

    @under_way
    @rule()
    def a_forward(self) -> None:
        self.newest += 1
        self.waiting.append(self.newest)
        self.send(forward(self.newest, step=self.step))

    @under_way
    @precondition(lambda self: self.waiting)
    @rule(last=st.booleans())
    def a_backward(self, last: bool) -> None:
        self.send(backward(self.waiting.pop(-1 if last else 0), step=self.step))

    @under_way
    @rule()
    def a_step(self) -> None:
        self.send(StepRequest(step=self.step, learning_rate=0.5))
        self.step += 1

    @precondition(lambda self: self.waiting)
    @rule()
    def a_release(self) -> None:
        self.send(Release(microbatch=self.waiting.pop()))

    @rule(number=st.integers(0, 3))
    def a_dropped_cache(self, number: int) -> None:
        self.send(DropCache(cache_id=number))

    @precondition(lambda self: self.silo is not None and self.owed)
    @rule()
    def a_reply(self) -> None:
        self.read()

    @precondition(lambda self: self.silo is not None)
    @rule()
    def a_cut(self) -> None:
        assert self.silo is not None
        self.silo.close()
        self.silo = None

    @rule(back=st.integers(0, 2))
    def a_stream_that_goes_on(self, back: int) -> None:
        """Also while the old one is still open; the silo may know digests of what was answered."""
        if self.silo is not None:
            self.silo.close()
        self.resume(back)

    @precondition(lambda self: self.silo is None)
    @rule(bit=st.integers(0, 255), late=st.booleans())
    def a_stream_with_other_requests(self, bit: int, late: bool) -> None:
        """Is refused, and the session is as it was."""
        wrong = [
            bytes(byte ^ (1 << bit % 8 if index == bit // 8 else 0) for index, byte in enumerate(d))
            for d in self.digests
        ]
        point = ResumePoint(received=self.received, first=0, digests=tuple(wrong))
        attempt = self.attempt if late else self.attempt + 1
        with RawSilo(self.server.address) as silo:
            ending = silo.send(resume_frame(SECRET, attempt, point)).ending()
        assert ending[1] == ("TrunkUnavailableError" if late else "ReplayError"), ending

    @invariant()
    def is_in_order(self) -> None:
        wanted = [event(request) for request in self.sent]
        assert self.done == wanted[: len(self.done)]

    @invariant()
    def has_one_session(self) -> None:
        assert self.backend.count("open") == 1 and self.backend.count("close") == 0


TestResuming = ResumingMachine.TestCase
TestResuming.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestResuming = pytest.mark.medium(TestResuming)
