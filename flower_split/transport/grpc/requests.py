"""Requests as frames: encoded at the silo; at the trunk everything is checked that came."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from flower_split.errors import SequenceError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy.clipping import checked_factors
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced, check_header
from flower_split.serialization.tables import (
    DTYPE_BY_NAME,
    DTYPE_FROM_WIRE,
    DTYPE_NAMES,
    DTYPE_TO_WIRE,
    ROLE_NUMBERS,
)
from flower_split.serialization.tensors import Outgoing, TensorAssembler, encode_tensor, frames
from flower_split.transport.bounds import (
    check_context,
    check_edits,
    check_hidden,
    check_prefix,
    past_of,
)
from flower_split.transport.grpc.adapter_frames import (
    ACTION_NAMES,
    ADAPTER_GRADS,
    GRAD_NAMES,
    adapter_call,
    adapter_use,
    as_matrix,
    check_call,
    check_number,
    check_step,
    read_adapter_use,
    read_step,
    to_constants,
)
from flower_split.transport.messages import (
    PREFIX,
    AdapterCall,
    BackwardRequest,
    CacheEdit,
    CacheUse,
    Discard,
    DropCache,
    EditKind,
    Finish,
    ForwardRequest,
    Release,
    Request,
    SessionLimits,
    SessionSpec,
    StepRequest,
    Weigh,
)
from flower_split.transport.rules import ADAPTER_UP, ATTENTION_MASK, POSITION_IDS, HopRules

NARROW = (torch.bfloat16, torch.float16)
"""Dtypes of autocast."""

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
            grad = encode_tensor(request.grad, rules["g2"])
            backward = pb.Backward(
                step=request.step,
                microbatch=request.microbatch,
                wants_input_grad=request.wants_input_grad,
                tensors=[grad.header],
                adapter_grad=ADAPTER_GRADS[request.adapter_grad],
                orthogonality_grad=request.orthogonality_grad,
            )
            return EncodedRequest(head=pb.ClientFrame(backward=backward), tensors=(grad,))
        case StepRequest():
            step = pb.Step(
                step=request.step,
                learning_rate=request.learning_rate,
                norms_before=request.norms_before,
                norms_after=request.norms_after,
                constants=to_constants(request.constants),
                scale=None if request.scale == 1.0 else request.scale,
                clip=None if math.isinf(request.clip) else request.clip,
                keeps_gradient=request.keeps_gradient,
            )
            return EncodedRequest(head=pb.ClientFrame(step=step))
        case Release():
            release = pb.Release(microbatch=request.microbatch)
            return EncodedRequest(head=pb.ClientFrame(release=release))
        case DropCache():
            drop = pb.DropCache(cache_id=request.cache_id)
            return EncodedRequest(head=pb.ClientFrame(drop_cache=drop))
        case Discard():
            return EncodedRequest(head=pb.ClientFrame(discard=pb.Discard(zeros=request.zeros)))
        case Weigh():
            weigh = pb.Weigh(microbatch=request.microbatch, factors=request.factors)
            return EncodedRequest(head=pb.ClientFrame(weigh=weigh))
        case AdapterCall():
            tensors = tuple(encode_tensor(as_matrix(t), ADAPTER_UP) for t in request.tensors)
            call = adapter_call(request, [tensor.header for tensor in tensors])
            return EncodedRequest(head=pb.ClientFrame(adapter=call), tensors=tensors)
        case Finish():
            return EncodedRequest(head=pb.ClientFrame(finish=pb.Finish()))


def _encode_forward(request: ForwardRequest, rules: HopRules) -> EncodedRequest:
    tensors = [encode_tensor(request.hidden, rules["h1"])]
    if request.attention_mask is not None:
        tensors.append(encode_tensor(request.attention_mask, ATTENTION_MASK))
    if request.position_ids is not None:
        tensors.append(encode_tensor(request.position_ids, POSITION_IDS))
    if request.prefix is not None:
        tensors.append(encode_tensor(request.prefix, rules[PREFIX]))
    forward = pb.Forward(
        step=request.step,
        microbatch=request.microbatch,
        keep_graph=request.keep_graph,
        dropout=request.dropout,
        cache=None if request.cache is None else _cache_use(request.cache),
        tensors=[tensor.header for tensor in tensors],
        adapter=adapter_use(request.adapter),
        autocast=_autocast(request.autocast),
    )
    return EncodedRequest(head=pb.ClientFrame(forward=forward), tensors=tuple(tensors))


def _autocast(name: str) -> pb.DType:
    return DTYPE_TO_WIRE[DTYPE_BY_NAME[name]] if name else pb.DTYPE_UNSPECIFIED


def _cache_use(cache: CacheUse) -> pb.CacheUse:
    edits = [pb.CacheEdit(kind=EDIT_KINDS[edit.kind], values=edit.values) for edit in cache.edits]
    return pb.CacheUse(cache_id=cache.cache_id, past_length=cache.past_length, edits=edits)


_EDIT_NAMES: dict[int, EditKind] = {int(number): name for name, number in EDIT_KINDS.items()}
# OPT numbers a padded token -1
_POSITION_RANGE = (-1, 2**31 - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingRequest:
    """A request whose every byte has arrived, not yet decoded."""

    head: pb.ClientFrame
    assembler: TensorAssembler
    optimizer: OptimizerSettings
    """What the session agreed on."""

    @property
    def num_bytes(self) -> int:
        """Bytes of tensor payload."""
        return self.assembler.num_bytes

    def build(self) -> Request:
        """The request, its checksums and values checked.

        Raises:
            WireError: a tensor or a number is not what it should be.
        """
        tensors = self.assembler.tensors()
        match self.head.WhichOneof("frame"):
            case "forward":
                return _forward(self.head.forward, tensors)
            case "backward":
                backward = self.head.backward
                return BackwardRequest(
                    step=backward.step,
                    microbatch=backward.microbatch,
                    grad=tensors[0],
                    wants_input_grad=backward.wants_input_grad,
                    adapter_grad=GRAD_NAMES[backward.adapter_grad],
                    orthogonality_grad=backward.orthogonality_grad,
                )
            case "step":
                return read_step(self.head.step, self.optimizer)
            case "discard":
                return Discard(zeros=self.head.discard.zeros)
            case "adapter":
                call = self.head.adapter
                action = ACTION_NAMES[call.action]
                return AdapterCall(
                    action=action, name=call.name, tensors=tuple(tensors), threshold=call.threshold
                )
            case "release":
                return Release(microbatch=self.head.release.microbatch)
            case "weigh":
                weigh = self.head.weigh
                return Weigh(microbatch=weigh.microbatch, factors=tuple(weigh.factors))
            case "drop_cache":
                return DropCache(cache_id=self.head.drop_cache.cache_id)
            case _:
                return Finish()


class RequestReader:
    """Turns the frames of one session, after its Hello, into requests."""

    def __init__(
        self, spec: SessionSpec, limits: SessionLimits, hidden_size: int | None = None
    ) -> None:
        self._rules = HopRules(spec)
        self._limits = limits
        self._hidden_size = hidden_size
        self._optimizer = spec.optimizer
        self._spec = spec
        self._pending: PendingRequest | None = None

    @property
    def awaited_bytes(self) -> int:
        """Payload of the request that has begun to arrive; 0 where none has."""
        return 0 if self._pending is None else self._pending.num_bytes

    def feed(self, frame: pb.ClientFrame) -> PendingRequest | None:
        """Take the next frame; a request once all of its frames are there.

        Raises:
            SequenceError: the frame is not one that may come now.
            WireError: the frame failed a check; nothing was allocated for it.
            TrunkBusyError: more tokens than the trunk takes.
        """
        kind = frame.WhichOneof("frame")
        if kind is None and not frame.chunks:
            raise WireError("a frame of an unknown kind")
        if self._pending is None:
            if kind is None:
                raise SequenceError("chunks, expected a request that announces their tensors")
            announced = self._check(frame, kind)
            self._pending = PendingRequest(
                head=frame, assembler=TensorAssembler(announced), optimizer=self._optimizer
            )
        elif kind is not None:
            raise SequenceError(f"frame {kind}, expected the chunks of the request before it")
        for chunk in frame.chunks:
            self._pending.assembler.add(chunk)
        if not self._pending.assembler.complete:
            return None
        done, self._pending = self._pending, None
        return done

    def _check(self, frame: pb.ClientFrame, kind: str) -> Sequence[Announced]:
        match kind:
            case "forward":
                return self._check_forward(frame.forward)
            case "backward":
                headers = frame.backward.tensors
                if len(headers) != 1:
                    raise WireError(f"backward with {len(headers)} tensors, expected g2 alone")
                if frame.backward.adapter_grad not in GRAD_NAMES:
                    number = frame.backward.adapter_grad
                    raise WireError(f"backward: unknown number {number} of what to do with grads")
                check_number("orthogonality_grad", frame.backward.orthogonality_grad)
                return [self._check_size(check_header(headers[0], self._rules["g2"]))]
            case "step":
                check_step(frame.step, self._optimizer)
                return ()
            case "adapter":
                return check_call(frame.adapter, self._limits)
            case "weigh":
                checked_factors(frame.weigh.factors, len(frame.weigh.factors))
                return ()
            case "release" | "drop_cache" | "finish" | "discard":
                return ()
            case "hello" | "resume":
                raise SequenceError(f"a second {kind}; a stream carries one session")
            case _:
                raise WireError("a frame of an unknown kind")

    def _check_forward(self, forward: pb.Forward) -> Sequence[Announced]:
        check_edits([len(edit.values) for edit in forward.cache.edits], self._limits)
        headers = list(forward.tensors)
        if not headers:
            raise WireError("forward without tensors, expected h1")
        hidden = self._check_size(check_header(headers.pop(0), self._rules["h1"]))
        announced = [hidden]
        mask = positions = None
        if headers and headers[0].role == ATTENTION_MASK.role:
            mask = check_header(headers.pop(0), ATTENTION_MASK)
            announced.append(mask)
        if headers and headers[0].role == POSITION_IDS.role:
            positions = check_header(headers.pop(0), POSITION_IDS)
            announced.append(positions)
        prefix = 0
        if headers:
            given = check_header(headers.pop(0), self._rules[PREFIX])
            check_prefix(given.shape, hidden.shape, self._spec, self._limits, self._hidden_size)
            announced.append(given)
            prefix = given.shape[1]
        if headers:
            raise WireError("forward with more tensors than h1, mask, position_ids and prefix")
        check_context(
            hidden.shape,
            None if mask is None else mask.shape,
            None if positions is None else positions.shape,
            past_of(_read_cache(forward), prefix),
            self._limits,
        )
        read_adapter_use(forward)
        if forward.autocast and DTYPE_FROM_WIRE.get(forward.autocast) not in NARROW:
            raise WireError(f"autocast: number {forward.autocast}, expected a dtype of 16 bits")
        return announced

    def _check_size(self, tensor: Announced) -> Announced:
        check_hidden(tensor.rule.name, tensor.shape, self._limits, self._hidden_size)
        return tensor


def _read_cache(forward: pb.Forward) -> CacheUse | None:
    if not forward.HasField("cache"):
        return None
    cache = forward.cache
    for edit in cache.edits:
        if edit.kind not in _EDIT_NAMES:
            raise WireError(f"cache edit of unknown kind {edit.kind}")
    edits = tuple(
        CacheEdit(kind=_EDIT_NAMES[edit.kind], values=tuple(edit.values)) for edit in cache.edits
    )
    return CacheUse(cache_id=cache.cache_id, past_length=cache.past_length, edits=edits)


def _forward(forward: pb.Forward, tensors: list[Tensor]) -> ForwardRequest:
    mask = positions = prefix = None
    for header, tensor in zip(forward.tensors, tensors, strict=True):
        if header.role == ATTENTION_MASK.role:
            mask = tensor
        elif header.role == POSITION_IDS.role:
            positions = tensor
        elif header.role == ROLE_NUMBERS[PREFIX]:
            prefix = tensor
    if positions is not None:
        low, high = _POSITION_RANGE
        if int(positions.min()) < low or int(positions.max()) > high:
            raise WireError(f"position_ids: values outside {low} to {high}")
    return ForwardRequest(
        step=forward.step,
        microbatch=forward.microbatch,
        hidden=tensors[0],
        attention_mask=mask,
        position_ids=positions,
        prefix=prefix,
        keep_graph=forward.keep_graph,
        dropout=forward.dropout,
        cache=_read_cache(forward),
        adapter=read_adapter_use(forward),
        autocast=DTYPE_NAMES[DTYPE_FROM_WIRE[forward.autocast]] if forward.autocast else "",
    )
