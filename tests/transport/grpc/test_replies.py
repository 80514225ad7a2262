"""Replies arrive as they were meant, and a silo takes nothing that it did not ask for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from affine_backend import backward, forward, spec
from torch import Tensor

from flower_split.errors import SequenceError, TrunkError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.messages import (
    Answerable,
    BackwardReply,
    Finish,
    QueueUse,
    Reply,
    SessionSummary,
    StepReply,
    StepRequest,
    WireBytes,
)
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())
COUNTED = WireBytes(h1=5, h2=6, g2=7, g1=8, context=9)
WAITED = QueueUse(seconds=0.25, length=3, rows=8, rows_beside=24)
SUMMARY = SessionSummary(
    steps=1, forwards=2, backwards=3, tokens=4, wire_bytes=COUNTED, queue=WAITED
)
CASES: list[tuple[Answerable, Reply]] = [
    (forward(3), torch.randn(2, 4, 8)),
    (forward(3, 1, 5, 65536), torch.randn(1, 5, 65536)),
    (backward(3), torch.randn(2, 4, 8)),
    (backward(3, wants_input_grad=False), None),
    (StepRequest(step=2, learning_rate=0.1), StepReply(norms=(0.1, 1e18, 0.0))),
    (Finish(), SUMMARY),
]


def frames_of(request: Answerable, reply: Reply) -> list[pb.ServerFrame]:
    return [
        pb.ServerFrame.FromString(frame.SerializeToString())
        for frame in encode_reply(request, reply, RULES).frames()
    ]


@pytest.mark.parametrize("norms", [[0.1] * 200_000, [float("nan")], [-1.0]])
def test_norms_of_a_step_are_bounded(norms: list[float]) -> None:
    frame = pb.ServerFrame(step=pb.StepReply(step=2, norms=norms))
    with pytest.raises(WireError, match="norm"):
        ReplyReader(StepRequest(step=2, learning_rate=0.1), RULES).feed(frame)


@pytest.mark.parametrize(("request_", "reply"), CASES)
def test_a_reply_arrives_as_it_was_meant(request_: Answerable, reply: Reply) -> None:
    *first, last = frames_of(request_, reply)
    reader = ReplyReader(request_, RULES)
    assert not any(reader.feed(frame) for frame in first)
    assert reader.feed(last)
    got = reader.reply()
    assert torch.equal(got, reply) if isinstance(reply, Tensor) else got == reply


@pytest.mark.parametrize(("request_", "reply"), CASES)
def test_a_reply_to_another_request_is_refused(request_: Answerable, reply: Reply) -> None:
    other = next(request for request, _ in CASES if type(request) is not type(request_))
    with pytest.raises(SequenceError, match="expected the answer to"):
        ReplyReader(other, RULES).feed(frames_of(request_, reply)[0])


def test_a_reply_to_another_microbatch_or_step_is_refused() -> None:
    with pytest.raises(SequenceError, match="a reply to microbatch 3, expected 4"):
        ReplyReader(forward(4), RULES).feed(frames_of(*CASES[0])[0])
    step = StepRequest(step=3, learning_rate=0.1)
    with pytest.raises(SequenceError, match="a reply to step 2, expected 3"):
        ReplyReader(step, RULES).feed(frames_of(*CASES[4])[0])


@pytest.mark.parametrize(
    ("request_", "reply", "message"),
    [
        (forward(3), torch.randn(2, 4, 9), r"h2: \(2, 4, 9\), expected \(2, 4, 8\)"),
        (backward(3), torch.randn(1, 4, 8), r"g1: \(1, 4, 8\), expected \(2, 4, 8\)"),
        (backward(3), None, "0 tensors, expected 1"),
        (backward(3, wants_input_grad=False), torch.randn(2, 4, 8), "1 tensors, expected 0"),
    ],
)
def test_a_reply_of_another_shape_is_refused(
    request_: Answerable, reply: Reply, message: str
) -> None:
    with pytest.raises(WireError, match=message):
        ReplyReader(request_, RULES).feed(frames_of(request_, reply)[0])


SHAPE = (6, 5, 4)


@pytest.mark.parametrize("wants", [False, True])
def test_a_prefix_s_gradient_arrives_as_it_was_meant(wants: bool) -> None:
    request = backward(3, wants_input_grad=wants, prefix_shape=SHAPE, adapter_grad="drop")
    g1 = torch.randn(2, 4, 8) if wants else None
    reply = BackwardReply(grad=g1, prefix_grad=torch.randn(SHAPE))
    reader = ReplyReader(request, RULES)
    assert [reader.feed(frame) for frame in frames_of(request, reply)][-1]
    got = reader.reply()
    assert isinstance(got, BackwardReply) and got.prefix_grad is not None
    assert torch.equal(got.prefix_grad, reply.prefix_grad)  # type: ignore[arg-type]
    assert (got.grad is None) if g1 is None else torch.equal(got.grad, g1)  # type: ignore[arg-type]
    for wrong, said in (
        (BackwardReply(grad=g1), f"{int(wants)} tensors, expected {int(wants) + 1}"),
        (replace(reply, prefix_grad=torch.zeros(6, 5, 3)), r"prefix_grad: \(6, 5, 3\), expected"),
    ):
        with pytest.raises(WireError, match=said):
            ReplyReader(request, RULES).feed(frames_of(request, wrong)[0])
    with pytest.raises(WireError, match=r"expected [01]"):
        plain = backward(3, wants_input_grad=wants, adapter_grad="drop")
        ReplyReader(plain, RULES).feed(frames_of(request, reply)[0])


def flip(frame: pb.ServerFrame) -> None:
    data = frame.chunks[0].data
    frame.chunks[0].data = bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "h2: checksum"),
        (lambda frame: setattr(frame.forward.tensors[0], "num_bytes", 7), "7 bytes announced"),
        (lambda frame: setattr(frame.forward.tensors[0], "role", pb.ROLE_G1), "got g1"),
        (lambda frame: setattr(frame.chunks[0], "offset", 8), "expected tensor 0, offset 0"),
    ],
)
def test_a_broken_reply_is_refused(
    change: Callable[[pb.ServerFrame], object], message: str
) -> None:
    frame = frames_of(*CASES[0])[0]
    change(frame)
    reader = ReplyReader(CASES[0][0], RULES)
    with pytest.raises(TrunkError, match=message):
        reader.feed(frame)
        reader.reply()


def test_a_second_head_amid_chunks_is_refused() -> None:
    reader = ReplyReader(CASES[1][0], RULES)
    first = frames_of(*CASES[1])[0]
    assert not reader.feed(first)
    with pytest.raises(SequenceError, match="frame forward, expected the chunks"):
        reader.feed(first)


def test_a_reply_is_not_given_out_before_it_arrived() -> None:
    with pytest.raises(SequenceError, match="before it arrived"):
        ReplyReader(Finish(), RULES).reply()


def test_a_trunk_does_not_send_what_is_not_finite() -> None:
    with pytest.raises(WireError, match="h2: NaN"):
        encode_reply(forward(0), torch.full((2, 4, 8), float("nan")), RULES)


def test_an_answer_of_the_wrong_kind_is_a_bug_of_the_backend() -> None:
    with pytest.raises(TypeError, match="StepReply does not answer ForwardRequest"):
        encode_reply(forward(0), StepReply(), RULES)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_summary_with_an_impossible_waiting_time_is_refused(seconds: float) -> None:
    summary = pb.Summary(queue=pb.QueueUse(seconds=seconds))
    reader = ReplyReader(Finish(), RULES)
    reader.feed(pb.ServerFrame(summary=summary))
    with pytest.raises(WireError, match="seconds of waiting"):
        reader.reply()
