"""Requests as frames: what a silo asks of the trunk, encoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.sending import Outgoing, encode_tensor, frames
from flower_split.transport.messages import (
    BackwardRequest,
    CacheUse,
    DropCache,
    EditKind,
    Finish,
    ForwardRequest,
    Release,
    Request,
    StepRequest,
)
from flower_split.transport.rules import ATTENTION_MASK, POSITION_IDS, HopRules

EDIT_KINDS: dict[EditKind, pb.EditKind] = {
    "reorder": pb.EDIT_KIND_REORDER,
    "crop": pb.EDIT_KIND_CROP,
    "repeat": pb.EDIT_KIND_REPEAT,
    "select": pb.EDIT_KIND_SELECT,
    "reset": pb.EDIT_KIND_RESET,
}
if set(EDIT_KINDS) != set(get_args(EditKind)) or len(EDIT_KINDS) != len(pb.EditKind.values()) - 1:
    raise ImportError("transport.requests.EDIT_KINDS does not cover every kind of cache edit")


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRequest:
    """A request's head frame and its encoded tensors."""

    head: pb.ClientFrame
    tensors: tuple[Outgoing, ...] = ()

    def frames(self) -> Iterator[pb.ClientFrame]:
        """Everything to be sent, in order; to be called once."""
        return frames(self.head, self.tensors)


def encode_request(request: Request, rules: HopRules) -> EncodedRequest:
    """The frames of `request`.

    Raises:
        WireError: a tensor is not what the session agreed on, holds values that its codec
            does not carry, or a number is out of range.
    """
    try:
        return _encode(request, rules)
    except ValueError as exc:
        raise WireError(f"a number of the request does not fit the wire: {exc}") from exc


def _encode(request: Request, rules: HopRules) -> EncodedRequest:
    match request:
        case ForwardRequest():
            return _encode_forward(request, rules)
        case BackwardRequest():
            grad = encode_tensor(request.grad, rules.g2)
            backward = pb.Backward(
                step=request.step,
                microbatch=request.microbatch,
                wants_input_grad=request.wants_input_grad,
                tensors=[grad.header],
            )
            return EncodedRequest(head=pb.ClientFrame(backward=backward), tensors=(grad,))
        case StepRequest():
            step = pb.Step(
                step=request.step,
                learning_rate=request.learning_rate,
                norms_before=request.norms_before,
                norms_after=request.norms_after,
            )
            return EncodedRequest(head=pb.ClientFrame(step=step))
        case Release():
            release = pb.Release(microbatch=request.microbatch)
            return EncodedRequest(head=pb.ClientFrame(release=release))
        case DropCache():
            drop = pb.DropCache(cache_id=request.cache_id)
            return EncodedRequest(head=pb.ClientFrame(drop_cache=drop))
        case Finish():
            return EncodedRequest(head=pb.ClientFrame(finish=pb.Finish()))


def _encode_forward(request: ForwardRequest, rules: HopRules) -> EncodedRequest:
    tensors = [encode_tensor(request.hidden, rules.h1)]
    if request.attention_mask is not None:
        tensors.append(encode_tensor(request.attention_mask, ATTENTION_MASK))
    if request.position_ids is not None:
        tensors.append(encode_tensor(request.position_ids, POSITION_IDS))
    forward = pb.Forward(
        step=request.step,
        microbatch=request.microbatch,
        keep_graph=request.keep_graph,
        dropout=request.dropout,
        cache=None if request.cache is None else _cache_use(request.cache),
        tensors=[tensor.header for tensor in tensors],
    )
    return EncodedRequest(head=pb.ClientFrame(forward=forward), tensors=tuple(tensors))


def _cache_use(cache: CacheUse) -> pb.CacheUse:
    edits = [pb.CacheEdit(kind=EDIT_KINDS[edit.kind], values=edit.values) for edit in cache.edits]
    return pb.CacheUse(cache_id=cache.cache_id, past_length=cache.past_length, edits=edits)
