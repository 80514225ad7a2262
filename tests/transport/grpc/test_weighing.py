"""What DP-SGD adds to the wire arrives as it was meant, is bounded, and is not there without it."""

import pytest
import torch
from affine_backend import backward, spec

from flower_split.errors import HandshakeError, TrunkError, WireError
from flower_split.privacy import PrivacySettings
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.handshake import hello_frame, read_hello
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.messages import BackwardReply, SessionLimits, Weigh
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())
HELD = backward(3, adapter_grad="hold")
SETTINGS = PrivacySettings(noise=1.5, clip=0.25, expected_batch=64)


def test_settings_arrive_and_are_no_bytes_where_there_are_none() -> None:
    private = spec(privacy=SETTINGS)
    frame = pb.ClientFrame.FromString(hello_frame(private, None).SerializeToString())
    assert read_hello(frame.hello) == (private, None)
    assert not hello_frame(spec(), None).hello.HasField("privacy")


@pytest.mark.parametrize(
    "told", [{"noise": 1.0}, {"noise": float("nan"), "clip": 1.0, "expected_batch": 1}]
)
def test_settings_that_bound_nothing_are_refused(told: dict[str, float]) -> None:
    hello = hello_frame(spec(), None).hello
    for name, value in told.items():
        setattr(hello.privacy, name, value)
    with pytest.raises(HandshakeError, match="privacy: "):
        read_hello(hello)


def test_a_weigh_arrives_as_it_was_meant() -> None:
    request = Weigh(microbatch=7, factors=(1.0, 0.0, 0.125))
    (frame,) = encode_request(request, RULES).frames()
    read = pb.ClientFrame.FromString(frame.SerializeToString())
    pending = RequestReader(spec(), SessionLimits(), 8).feed(read)
    assert pending is not None and pending.build() == request


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan"), float("inf")])
def test_factors_out_of_bounds_are_refused(factor: float) -> None:
    frame = pb.ClientFrame(weigh=pb.Weigh(microbatch=7, factors=[0.5, factor]))
    with pytest.raises(WireError, match="2 factors from 0 to 1"):
        RequestReader(spec(), SessionLimits(), 8).feed(frame)


def told(norms: tuple[float, ...]) -> pb.ServerFrame:
    reply = BackwardReply(grad=torch.randn(2, 4, 8), squared_norms=norms)
    first, *_ = encode_reply(HELD, reply, RULES).frames()
    return first


def test_squared_norms_arrive_as_they_were_meant() -> None:
    reply = BackwardReply(grad=torch.randn(2, 4, 8), squared_norms=(0.0, 1e36))
    reader = ReplyReader(HELD, RULES)
    assert [reader.feed(frame) for frame in encode_reply(HELD, reply, RULES).frames()][-1]
    got = reader.reply()
    assert isinstance(got, BackwardReply) and got.squared_norms == reply.squared_norms


@pytest.mark.parametrize(
    "norms", [(), (1.0,), (1.0, 2.0, 3.0), (1.0, -1.0), (1.0, float("nan")), (1.0, 1e37)]
)
def test_squared_norms_out_of_bounds_are_refused(norms: tuple[float, ...]) -> None:
    with pytest.raises(WireError, match="squared norm"):
        ReplyReader(HELD, RULES).feed(told(norms))


def test_squared_norms_that_were_not_asked_for_are_refused() -> None:
    with pytest.raises(TrunkError, match="2 squared norms of 0 examples"):
        ReplyReader(backward(3), RULES).feed(told((1.0, 1.0)))
