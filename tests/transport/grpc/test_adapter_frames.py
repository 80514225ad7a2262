"""What is said of the session's adapter arrives as it was meant, and in bounds or not at all."""

import math
from collections.abc import Callable

import pytest
import torch
from affine_backend import backward, forward, spec

from flower_split.errors import TrunkError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.handshake import read_welcome, welcome_frame
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    AdapterUse,
    BackwardReply,
    BackwardRequest,
    Discard,
    ForwardReply,
    Reply,
    Request,
    SessionLimits,
    StepRequest,
)
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())
SHARED = SessionLimits(max_adapter_elements=20)
TAG = "0a" * 32


def request_frames(request: Request) -> list[pb.ClientFrame]:
    frames = encode_request(request, RULES).frames()
    return [pb.ClientFrame.FromString(frame.SerializeToString()) for frame in frames]


def arrived(request: Request, limits: SessionLimits = SHARED) -> Request:
    reader = RequestReader(spec(), limits)
    for frame in request_frames(request):
        pending = reader.feed(frame)
    assert pending is not None
    return pending.build()


def answered(request: Request, reply: Reply, limits: SessionLimits = SHARED) -> Reply:
    reader = ReplyReader(request, RULES, limits)  # type: ignore[arg-type]
    for frame in encode_reply(request, reply, RULES).frames():  # type: ignore[arg-type]
        done = reader.feed(pb.ServerFrame.FromString(frame.SerializeToString()))
    assert done
    return reader.reply()


@pytest.mark.parametrize(
    "use",
    [
        AdapterUse(),
        AdapterUse(disabled=True),
        AdapterUse(copy="ref"),
        AdapterUse(scale=0.0),
        AdapterUse(scale=-0.3, copy="ref"),
    ],
)
def test_the_adapter_of_a_pass_arrives(use: AdapterUse) -> None:
    request = arrived(forward(3, adapter=use, autocast="bfloat16"))
    assert (request.adapter, request.autocast) == (use, "bfloat16")  # type: ignore[union-attr]


def test_a_pass_with_its_own_adapter_says_nothing_of_it() -> None:
    (frame, *_) = request_frames(forward(3))
    assert not frame.forward.HasField("adapter") and not frame.forward.autocast


@pytest.mark.parametrize("grad", ["add", "measure", "drop", "return"])
def test_what_becomes_of_a_gradient_arrives(grad: str) -> None:
    assert arrived(backward(3, adapter_grad=grad)).adapter_grad == grad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "step",
    [
        StepRequest(step=1, learning_rate=0.1),
        StepRequest(step=1, learning_rate=0.1, scale=0.0, clip=0.0, keeps_gradient=True),
        StepRequest(
            step=1, learning_rate=0.1, constants=OptimizerSettings(beta1=0.5, weight_decay=0.2)
        ),
    ],
)
def test_a_step_arrives(step: StepRequest) -> None:
    assert arrived(step) == step


@pytest.mark.parametrize("zeros", [True, False])
def test_a_discard_arrives(zeros: bool) -> None:
    assert arrived(Discard(zeros=zeros)) == Discard(zeros=zeros)


@pytest.mark.parametrize(
    "call",
    [
        AdapterCall(action="list"),
        AdapterCall(action="read"),
        AdapterCall(action="copy", name="ref"),
        AdapterCall(action="snapshot", name=TAG),
        AdapterCall(action="restore_moments", name=TAG),
        AdapterCall(action="write", tensors=(torch.randn(2, 3, 2), torch.randn(4), torch.ones(()))),
    ],
    ids=lambda call: call.action,
)
def test_a_call_arrives(call: AdapterCall) -> None:
    got = arrived(call)
    assert isinstance(got, AdapterCall)
    assert (got.action, got.name) == (call.action, call.name)
    sizes = [tensor.numel() for tensor in call.tensors]
    assert [tensor.numel() for tensor in got.tensors] == sizes


HELD = (("a.lora_A.weight", (2, 3)), ("a.scale", (4,)), ("b", (2, 1, 2)))
VALUES = tuple(torch.randn(shape) for _, shape in HELD)


def test_a_reply_has_the_tensors_in_their_own_shapes() -> None:
    read = answered(AdapterCall(action="read"), AdapterReply(held=HELD, tensors=VALUES))
    assert isinstance(read, AdapterReply) and read.held == HELD
    assert all(torch.equal(a, b) for a, b in zip(read.tensors, VALUES, strict=True))
    listed = answered(AdapterCall(action="list"), AdapterReply(held=HELD))
    assert isinstance(listed, AdapterReply) and (listed.held, listed.tensors) == (HELD, ())


def test_a_backward_reply_has_measures_or_gradients() -> None:
    g1 = torch.randn(2, 4, 8)
    request = backward(3, adapter_grad="measure")
    got = answered(request, BackwardReply(grad=g1, norm=0.5, largest=0.25))
    assert isinstance(got, BackwardReply) and got.grad is not None
    assert torch.equal(got.grad, g1) and (got.norm, got.largest) == (0.5, 0.25)
    request = backward(3, adapter_grad="return", wants_input_grad=False)
    got = answered(request, BackwardReply(adapter_grads=VALUES))
    assert isinstance(got, BackwardReply) and got.grad is None
    assert [tensor.numel() for tensor in got.adapter_grads] == [6, 4, 4]


def change(frame: pb.ClientFrame, edit: Callable[[pb.ClientFrame], object]) -> pb.ClientFrame:
    edit(frame)
    return pb.ClientFrame.FromString(frame.SerializeToString())


@pytest.mark.parametrize(
    ("request_", "edit"),
    [
        (forward(1), lambda f: f.forward.adapter.__setattr__("scale", math.nan)),
        (forward(1), lambda f: f.forward.adapter.__setattr__("scale", 1e9)),
        (forward(1), lambda f: f.forward.adapter.__setattr__("copy", "x" * 65)),
        (forward(1), lambda f: f.forward.adapter.__setattr__("copy", "a\nb")),
        (forward(1), lambda f: f.forward.__setattr__("autocast", pb.DTYPE_FLOAT32)),
        (forward(1), lambda f: f.forward.__setattr__("autocast", 99)),
        (backward(1), lambda f: f.backward.__setattr__("adapter_grad", 99)),
        (StepRequest(step=0, learning_rate=0.1), lambda f: f.step.__setattr__("scale", -1.0)),
        (StepRequest(step=0, learning_rate=0.1), lambda f: f.step.__setattr__("clip", math.inf)),
        (
            StepRequest(step=0, learning_rate=0.1),
            lambda f: f.step.constants.__setattr__("beta1", math.nan),
        ),
        (AdapterCall(action="list"), lambda f: f.adapter.__setattr__("action", 99)),
        (AdapterCall(action="list"), lambda f: f.adapter.__setattr__("name", "x")),
        (AdapterCall(action="copy", name="a"), lambda f: f.adapter.__setattr__("name", "")),
        (
            AdapterCall(action="write", tensors=(torch.ones(2, 2),)),
            lambda f: f.adapter.__setattr__("action", pb.ADAPTER_ACTION_READ),
        ),
        (
            AdapterCall(action="write", tensors=(torch.ones(2, 2),)),
            lambda f: f.adapter.tensors[0].shape.__setitem__(0, 1 << 19),
        ),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    request_: Request, edit: Callable[[pb.ClientFrame], object]
) -> None:
    frame, *_ = request_frames(request_)
    with pytest.raises(WireError):
        RequestReader(spec(), SHARED).feed(change(frame, edit))


def test_more_elements_than_the_adapter_has_are_refused_before_they_come() -> None:
    with pytest.raises(WireError, match="21 elements of adapter tensors, expected at most 20"):
        arrived(AdapterCall(action="write", tensors=(torch.ones(21),)))


def test_a_session_that_shares_nothing_takes_and_gives_no_tensors() -> None:
    closed = SessionLimits()
    with pytest.raises(WireError, match="does not send"):
        arrived(AdapterCall(action="write", tensors=(torch.ones(2),)), closed)
    reply = AdapterReply(held=HELD, tensors=VALUES)
    with pytest.raises(WireError, match="does not send"):
        answered(AdapterCall(action="read"), reply, closed)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (AdapterCall(action="list"), AdapterReply(held=HELD, tensors=VALUES)),
        (AdapterCall(action="read"), AdapterReply(held=HELD[:1], tensors=VALUES)),
        (backward(1, adapter_grad="measure"), BackwardReply(grad=torch.ones(2, 4, 8), norm=-1.0)),
        (
            backward(1, adapter_grad="measure"),
            BackwardReply(grad=torch.ones(2, 4, 8), adapter_grads=VALUES),
        ),
    ],
)
def test_a_silo_takes_nothing_that_it_did_not_ask_for(request_: Request, reply: Reply) -> None:
    with pytest.raises(TrunkError):
        answered(request_, reply)


def test_the_welcome_says_whether_the_adapter_is_shared() -> None:
    assert read_welcome(welcome_frame(SHARED).welcome).max_adapter_elements == 20


def test_ranks_arrive_as_they_were_told() -> None:
    masked = AdapterCall(action="ranks_mask", threshold=0.25)
    call = arrived(masked)
    assert isinstance(call, AdapterCall) and (call.action, call.threshold) == ("ranks_mask", 0.25)
    scored = answered(AdapterCall(action="ranks_scores"), AdapterReply(scores=(0.5, 0.0, 1.5)))
    assert isinstance(scored, AdapterReply) and scored.scores == (0.5, 0.0, 1.5)
    kept = answered(AdapterCall(action="ranks_mask_again"), AdapterReply(kept=7))
    assert isinstance(kept, AdapterReply) and kept.kept == 7
    told = arrived(backward(0, orthogonality_grad=0.125))
    assert isinstance(told, BackwardRequest) and told.orthogonality_grad == 0.125
    reply = answered(forward(0), ForwardReply(hidden=forward(0).hidden, orthogonality=2.5))
    assert isinstance(reply, ForwardReply) and reply.orthogonality == 2.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31])
def test_numbers_of_ranks_are_finite(value: float) -> None:
    with pytest.raises(WireError, match="threshold"):
        arrived(AdapterCall(action="ranks_mask", threshold=value))
    with pytest.raises(WireError, match="orthogonality_grad"):
        arrived(backward(0, orthogonality_grad=value))
    with pytest.raises(WireError, match="score"):
        answered(AdapterCall(action="ranks_scores"), AdapterReply(scores=(value,)))
    with pytest.raises(WireError, match="orthogonality"):
        answered(forward(0), ForwardReply(hidden=forward(0).hidden, orthogonality=value))


def test_ranks_come_where_they_were_asked_for() -> None:
    with pytest.raises(WireError, match="scores in a reply"):
        answered(AdapterCall(action="list"), AdapterReply(scores=(1.0,)))
    (frame,) = request_frames(AdapterCall(action="ranks_scores"))
    frame.adapter.threshold = 1.0
    with pytest.raises(WireError, match="with a threshold"):
        RequestReader(spec(), SHARED).feed(frame)


def test_other_methods_get_not_a_byte_longer() -> None:
    (head, *_) = request_frames(backward(0))
    assert not head.backward.ListFields()[-1][0].name.startswith("orthogonality")
    (call,) = request_frames(AdapterCall(action="list"))
    assert [field.name for field, _ in call.adapter.ListFields()] == ["action"]
