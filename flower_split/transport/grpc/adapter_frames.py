"""What requests and replies say of the session's adapter and its steps; checked at both ends."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast, get_args

from torch import Tensor

from flower_split.errors import ConfigError, WireError
from flower_split.optimization.clipping import checked_norms
from flower_split.optimization.settings import OptimizerSettings
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced, TensorRule, check_header
from flower_split.transport.messages import (
    OWN_ADAPTER,
    AdapterAction,
    AdapterCall,
    AdapterGrad,
    AdapterReply,
    AdapterUse,
    SessionLimits,
    StepRequest,
)
from flower_split.transport.rules import ADAPTER_DOWN, ADAPTER_UP

ADAPTER_ACTIONS: dict[AdapterAction, pb.AdapterAction] = {
    name: cast("pb.AdapterAction", pb.AdapterAction.Value(f"ADAPTER_ACTION_{name.upper()}"))
    for name in get_args(AdapterAction)
}
ADAPTER_GRADS: dict[AdapterGrad, pb.AdapterGrad] = {
    name: cast("pb.AdapterGrad", pb.AdapterGrad.Value(f"ADAPTER_GRAD_{name.upper()}"))
    for name in get_args(AdapterGrad)
}
ACTION_NAMES = {int(number): name for name, number in ADAPTER_ACTIONS.items()}
GRAD_NAMES = {int(number): name for name, number in ADAPTER_GRADS.items()}
if len(ADAPTER_ACTIONS) != len(pb.AdapterAction.values()) - 1 or len(ADAPTER_GRADS) != len(
    pb.AdapterGrad.values()
):
    raise ImportError("messages.AdapterAction and AdapterGrad do not cover the wire's")

LONGEST_NAME = 64
"""Characters of a copy's name and of a snapshot's tag."""
MOST_TENSORS = 1 << 16
"""Tensors of one part of an adapter."""
_LONGEST_TENSOR_NAME = 512
LARGEST_SCALE = 1e6
"""Factor of an adapter's scaling, in magnitude."""
LARGEST_SCORE = 1e30
"""Of a triplet, and of AdaLoRA's orthogonality and its gradient, in magnitude."""
_NEEDS_NAME = {"copy", "snapshot", "restore", "snapshot_moments", "restore_moments"}


def as_matrix(tensor: Tensor) -> Tensor:
    """An adapter tensor as it travels: its first axis and all the others in one."""
    return tensor.reshape(_matrix_shape(tensor.shape))


def adapter_use(use: AdapterUse) -> pb.AdapterUse | None:
    """The message; None for the session's own adapter as it is."""
    if use == OWN_ADAPTER:
        return None
    scale = None if use.scale == 1.0 else use.scale
    return pb.AdapterUse(disabled=use.disabled, copy=use.copy, scale=scale)


def read_adapter_use(forward: pb.Forward) -> AdapterUse:
    """With which adapter a pass computes.

    Raises:
        WireError: a name or the scale is out of bounds.
    """
    if not forward.HasField("adapter"):
        return OWN_ADAPTER
    use = forward.adapter
    scale = use.scale if use.HasField("scale") else 1.0
    if not (math.isfinite(scale) and abs(scale) <= LARGEST_SCALE):
        raise WireError(f"adapter: scale {scale}, expected at most {LARGEST_SCALE:g} in magnitude")
    _check_name(use.copy)
    return AdapterUse(disabled=use.disabled, copy=use.copy, scale=scale)


def to_constants(settings: OptimizerSettings | None) -> pb.Constants | None:
    """The message; None for those of the handshake."""
    if settings is None:
        return None
    return pb.Constants(
        beta1=settings.beta1,
        beta2=settings.beta2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def read_constants(step: pb.Step, agreed: OptimizerSettings) -> OptimizerSettings | None:
    """The constants of a step; None for those of the handshake.

    Raises:
        WireError: one is out of bounds.
    """
    if not step.HasField("constants"):
        return None
    own = step.constants
    try:
        return replace(
            agreed, beta1=own.beta1, beta2=own.beta2, eps=own.eps, weight_decay=own.weight_decay
        )
    except ConfigError as exc:
        raise WireError(f"a step's constants: {exc}") from exc


def check_step(step: pb.Step, agreed: OptimizerSettings) -> None:
    """Raise `WireError` where a number of a step is out of bounds."""
    agreed.check_learning_rate(step.learning_rate)
    checked_norms(step.norms_before)
    checked_norms(step.norms_after)
    read_constants(step, agreed)
    for name in ("scale", "clip"):
        value = getattr(step, name)
        if step.HasField(name) and not (math.isfinite(value) and value >= 0):
            raise WireError(f"{name}: {value}, expected a finite number of at least 0")


def read_step(step: pb.Step, agreed: OptimizerSettings) -> StepRequest:
    """The request of a step that was checked."""
    return StepRequest(
        step=step.step,
        learning_rate=step.learning_rate,
        norms_before=tuple(step.norms_before),
        norms_after=tuple(step.norms_after),
        constants=read_constants(step, agreed),
        scale=step.scale if step.HasField("scale") else 1.0,
        clip=step.clip if step.HasField("clip") else math.inf,
        keeps_gradient=step.keeps_gradient,
    )


def adapter_call(call: AdapterCall, headers: Sequence[pb.TensorHeader]) -> pb.AdapterCall:
    """The message."""
    return pb.AdapterCall(
        action=ADAPTER_ACTIONS[call.action],
        name=call.name,
        tensors=headers,
        threshold=call.threshold if call.action == "ranks_mask" else None,
    )


def check_call(call: pb.AdapterCall, limits: SessionLimits) -> Sequence[Announced]:
    """The tensors that a call announces.

    Raises:
        WireError: an unknown action, a malformed name, or tensors that the session may not send.
    """
    action = ACTION_NAMES.get(call.action)
    if action is None:
        raise WireError(f"adapter: action of unknown number {call.action}")
    _check_name(call.name)
    if (action in _NEEDS_NAME) != bool(call.name):
        raise WireError(f"adapter: {action} with the name {call.name!r}")
    if bool(call.tensors) != (action == "write"):
        raise WireError(f"adapter: {action} with {len(call.tensors)} tensors")
    if (action == "ranks_mask") != call.HasField("threshold"):
        raise WireError(f"adapter: {action} with a threshold of {call.threshold}")
    check_number("threshold", call.threshold)
    return _announced(call.tensors, ADAPTER_UP, limits)


def adapter_reply(
    call: AdapterCall, reply: AdapterReply, headers: Sequence[pb.TensorHeader]
) -> pb.AdapterReply:
    """The message."""
    held = [pb.AdapterTensor(name=name, shape=shape) for name, shape in reply.held]
    return pb.AdapterReply(
        action=ADAPTER_ACTIONS[call.action],
        held=held,
        tensors=headers,
        scores=reply.scores,
        kept=reply.kept,
    )


def check_reply(
    call: AdapterCall, reply: pb.AdapterReply, limits: SessionLimits
) -> Sequence[Announced]:
    """The tensors that the reply to `call` announces.

    Raises:
        WireError: it is not an answer to `call`, or out of bounds.
    """
    if reply.action != ADAPTER_ACTIONS[call.action]:
        raise WireError(f"a reply to adapter action {reply.action}, expected {call.action}")
    if len(reply.held) > MOST_TENSORS:
        raise WireError(f"an adapter of {len(reply.held)} tensors, at most {MOST_TENSORS}")
    for tensor in reply.held:
        if len(tensor.name) > _LONGEST_TENSOR_NAME or len(tensor.shape) > 8:
            raise WireError("an adapter tensor's name or shape is too long")
    if reply.scores and call.action != "ranks_scores":
        raise WireError(f"scores in a reply to adapter action {call.action}")
    for score in reply.scores:
        check_number("a triplet's score", score)
    announced = _announced(reply.tensors, ADAPTER_DOWN, limits)
    read = reply.held if call.action == "read" else ()
    expected = [_matrix_shape(tensor.shape) for tensor in read]
    if [one.shape for one in announced] != expected:
        raise WireError("an adapter's tensors differ in shape from what was announced")
    return announced


def held_tensors(reply: pb.AdapterReply, tensors: Sequence[Tensor]) -> AdapterReply:
    """The reply, its tensors in their own shapes."""
    held = tuple((tensor.name, tuple(tensor.shape)) for tensor in reply.held)
    shaped = (t.reshape(shape) for t, (_, shape) in zip(tensors, held, strict=False))
    return AdapterReply(
        held=held, tensors=tuple(shaped), scores=tuple(reply.scores), kept=reply.kept
    )


def check_grads(headers: Sequence[pb.TensorHeader], limits: SessionLimits) -> Sequence[Announced]:
    """The adapter's gradients that the reply to a backward pass announces.

    Raises:
        WireError: they are out of bounds.
    """
    return _announced(headers, ADAPTER_DOWN, limits)


def _announced(
    headers: Sequence[pb.TensorHeader], rule: TensorRule, limits: SessionLimits
) -> Sequence[Announced]:
    if headers and not limits.max_adapter_elements:
        raise WireError("adapter tensors, which this session does not send")
    if len(headers) > MOST_TENSORS:
        raise WireError(f"{len(headers)} adapter tensors, at most {MOST_TENSORS}")
    announced = [check_header(header, rule) for header in headers]
    total = sum(math.prod(tensor.shape) for tensor in announced)
    if total > limits.max_adapter_elements:
        raise WireError(
            f"{total} elements of adapter tensors, expected at most {limits.max_adapter_elements}"
        )
    return announced


def check_number(name: str, value: float) -> None:
    """Raise `WireError` unless `value` is finite and of sane magnitude."""
    if not (math.isfinite(value) and abs(value) <= LARGEST_SCORE):
        raise WireError(f"{name}: {value}, expected at most {LARGEST_SCORE:g} in magnitude")


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) else (1, 1)


def _check_name(name: str) -> None:
    if len(name) > LONGEST_NAME or (name and not name.isprintable()):
        raise WireError(f"adapter: a name is at most {LONGEST_NAME} printable characters")
