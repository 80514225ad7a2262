"""Frames with random damage: every one is understood or refused, none does anything else."""

import pytest
import torch
from affine_backend import backward, forward, spec
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.errors import TrunkError
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.handshake import hello_frame, read_hello
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.messages import CacheEdit, CacheUse, SessionLimits, StepRequest, Ticket
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())
LIMITS = SessionLimits(max_message_tokens=64, max_cached_tokens=64)
FORWARD = forward(
    1,
    attention_mask=torch.ones(2, 5, dtype=torch.bool),
    position_ids=torch.zeros(1, 4, dtype=torch.int64),
    cache=CacheUse(cache_id=1, past_length=1, edits=(CacheEdit(kind="crop", values=(1,)),)),
)
REQUESTS = [
    frame.SerializeToString()
    for request in (FORWARD, backward(1), StepRequest(step=1, learning_rate=0.1))
    for frame in encode_request(request, RULES).frames()
]
REPLY = next(iter(encode_reply(FORWARD, FORWARD.hidden, RULES).frames())).SerializeToString()
HELLO = hello_frame(
    spec(), Ticket(run_id=1, node_id=2, server_round=3, token="x")
).SerializeToString()
# damage near the start hits numbers and headers rather than payload
DAMAGE = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6)


def damaged(frame: bytes, damage: list[tuple[int, int]]) -> bytes:
    changed = bytearray(frame)
    for position, value in damage:
        changed[position % len(changed)] = value
    return bytes(changed)


@pytest.mark.medium
@settings(max_examples=800, deadline=None)
@given(original=st.sampled_from(REQUESTS), damage=DAMAGE)
def test_damaged_requests(original: bytes, damage: list[tuple[int, int]]) -> None:
    try:
        frame = pb.ClientFrame.FromString(damaged(original, damage))
        pending = RequestReader(spec(), LIMITS, 8).feed(frame)
        if pending is not None:
            pending.build()
    except (DecodeError, TrunkError):
        pass


@pytest.mark.medium
@settings(max_examples=300, deadline=None)
@given(damage=DAMAGE)
def test_damaged_replies(damage: list[tuple[int, int]]) -> None:
    try:
        reader = ReplyReader(FORWARD, RULES)
        if reader.feed(pb.ServerFrame.FromString(damaged(REPLY, damage))):
            assert torch.equal(reader.reply(), FORWARD.hidden)  # type: ignore[arg-type]
    except (DecodeError, TrunkError):
        pass


@pytest.mark.medium
@settings(max_examples=300, deadline=None)
@given(damage=DAMAGE)
def test_damaged_hellos(damage: list[tuple[int, int]]) -> None:
    try:
        frame = pb.ClientFrame.FromString(damaged(HELLO, damage))
        if frame.WhichOneof("frame") == "hello":
            read_hello(frame.hello)
    except (DecodeError, TrunkError):
        pass
