"""The trunk's gradient in the client model: three numbers that stock code treats as it should.

`zero_grad`, `clip_grad_norm_`, `clip_grad_value_`, a gradient scaler and the like see the silo's
parameters alone. So the remote trunk has a parameter of three elements whose gradient has the norm
of all of the trunk's gradient, and its largest element first. What stock code does to that one it
would have done to the trunk's, and it is read off it before the trunk is asked for anything more.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError, ModelError
from flower_split.remote.mirror_norms import MirroredGradient

T = TypeVar("T")

_TOLERANCE = 1e-5
"""Relative; the elements are float32."""
_ROUNDED = 1e-4
"""How far a sum over the forward passes of one backward pass may be from its last measure."""


@dataclass(frozen=True, kw_only=True)
class GradientChange:
    """What was done to gradients: scaled, and then bounded in their elements."""

    scale: float = 1.0
    clip: float = math.inf


class GradientMirror:
    """Follows the gradient of `parameter`.

    Args:
        parameter: Of three elements.
        discard: Has the trunk forget its gradient of the step, as zeros or as none.
    """

    def __init__(self, parameter: nn.Parameter, discard: Callable[[bool], None]) -> None:
        self.parameter = parameter
        self._discard = discard
        self._told: Tensor | None = None
        self._underway: tuple[int, Tensor, int] | None = None
        parameter.register_post_accumulate_grad_hook(weakly(self._accumulated))
        self.number = 0
        """Counts the trunk's gradients: another one begins when one was zeroed."""
        self.is_there = False
        """Whether the trunk has a gradient of the step."""

    def check_place(self, found: Tensor) -> None:
        """Raise `ModelError` where `found` has taken the parameter's place in the client model."""
        if found is not self.parameter:
            raise ModelError(
                "the parameters of the client model were replaced after attach_trunk, as "
                "fully_shard, FSDP and DeepSpeed do, which divide a model among processes. A "
                "client model stays whole in each: DistributedDataParallel takes one that was "
                "attached with trunk_parameters=True, or with a frozen trunk"
            )

    @property
    def is_measured(self) -> bool:
        """Whether the trunk's gradient is known by its measures."""
        return self._told is not None

    @property
    def largest(self) -> float | None:
        """Magnitude of the largest element of the trunk's gradient as it was told."""
        return None if self._told is None else float(self._told[0])

    def added(self) -> None:
        """The trunk has added a gradient that it did not measure."""
        self.is_there = True

    def told(self, norm: float, largest: float) -> Tensor:
        """The trunk's gradient of the step so far has these measures; as a tensor like them."""
        rest = math.nan
        if not math.isnan(norm):
            rest = math.sqrt(max(norm * norm - largest * largest, 0.0))
        self._told = self.parameter.detach().new_tensor([largest, 0.6 * rest, 0.8 * rest])
        self.is_there = True
        return self._told

    def place(self, norm: float, largest: float) -> None:
        """Set the parameter's gradient to these measures of the trunk's, outside of autograd."""
        self.parameter.grad = self.told(norm, largest).clone().as_subclass(MirroredGradient)

    def increment(self, norm: float, largest: float) -> Tensor:
        """What autograd has to add for the trunk's gradient to have these measures, (3,).

        One backward pass through several forward passes adds up all of theirs first.
        """
        before, grad = self._added_in_this_pass(), self.parameter.grad
        added = self.told(norm, largest).clone()
        for earlier in (before, grad):
            added = added if earlier is None else added - earlier
        total = added if before is None else before + added
        passes = 1 if before is None or self._underway is None else self._underway[2] + 1
        self._underway = (torch._C._current_graph_task_id(), total, passes)
        return added

    def _added_in_this_pass(self) -> Tensor | None:
        """What the backward pass that is under way will add of those before."""
        if self._underway is None or self._underway[0] != torch._C._current_graph_task_id():
            return None
        return self._underway[1]

    def _accumulated(self, parameter: Tensor) -> None:
        underway, self._underway = self._underway, None
        told, grad = self._told, parameter.grad
        if grad is not None:
            parameter.grad = grad.as_subclass(MirroredGradient)
        if underway is None or underway[2] < 2 or told is None or grad is None:
            return
        if torch.allclose(grad, told, rtol=_ROUNDED, atol=_ROUNDED * float(told.abs().max())):
            self.take(grad)

    def take(self, grad: Tensor) -> None:
        """The trunk's gradient was changed as `grad` was, the parameter's."""
        self._told = grad.detach().clone()

    def forget(self) -> None:
        """The trunk has no gradient any more."""
        self._told, self.is_there = None, False

    def follow_zeroing(self) -> None:
        """Have the trunk forget its gradient, where the silo's was zeroed."""
        if not self.is_there or self._told is None or self._added_in_this_pass() is not None:
            return
        grad = self.parameter.grad
        if grad is None:
            self._discard(False)
            self.number += 1
            self.forget()
        elif not bool(grad.any()) and bool(self._told.any()):
            self._discard(True)
            self.number += 1
            self._told = torch.zeros_like(self._told)

    def change(self) -> GradientChange:
        """What was done to the silo's gradients since the last backward pass.

        Raises:
            AdapterError: something that the trunk cannot do alike.
        """
        told, grad = self._told, self.parameter.grad
        if self._added_in_this_pass() is not None:
            return GradientChange()
        if told is None or grad is None or not self.is_there:
            return GradientChange()
        now = grad.detach().to(told)
        if not bool(torch.isfinite(now).all()):
            raise AdapterError(
                "the trunk's gradient is not finite, and no step may be taken with it: skip the "
                "step with zero_grad(), or lower the learning rate"
            )
        if torch.allclose(now, told, rtol=_TOLERANCE, atol=0.0):
            return GradientChange()
        norm, scaled = float(told.norm()), float(now.norm())
        scale = scaled / norm if norm else math.nan
        if norm and torch.allclose(now, told * scale, rtol=_TOLERANCE, atol=_TOLERANCE * scaled):
            return GradientChange(scale=scale)
        bound = float(now[0])
        if 0 < bound < float(told[0]) and torch.allclose(
            now, told.clamp(-bound, bound), rtol=_TOLERANCE, atol=0.0
        ):
            return GradientChange(clip=bound)
        if torch.equal(now[:1], told[:1]) and bool((now <= told).all()) and bool((now >= 0).all()):
            return GradientChange()  # bounded above the trunk's largest element
        raise AdapterError(
            "gradients were changed by hand in a way that the trunk cannot follow: it follows "
            "zero_grad, scaling by one factor, clip_grad_norm_ and clip_grad_value_. For anything "
            "else attach_trunk(..., trunk_parameters=True) brings its gradients to the silo"
        )


def weakly(method: Callable[[T], None]) -> Callable[[T], None]:
    """`method` without keeping its object alive."""
    held = weakref.WeakMethod(method)

    def call(value: T) -> None:
        alive = held()
        if alive is not None:
            alive(value)

    return call
