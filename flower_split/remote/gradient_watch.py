"""The silo's gradients, measured as autograd leaves them, to see what was done to them since.

The trunk can do to its gradient only what was done to all of the model's alike. So the silo's have
to show the same change as the mirror of the trunk's, tensor by tensor.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError
from flower_split.remote.gradient_mirror import GradientChange


class GradientWatch:
    """Watches the gradients of `parameters`.

    Args:
        parameters: The silo's.
        step: Number of the gradient that the trunk is adding to; None where the pass that is
            under way is not measured there.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], step: Callable[[], int | None]) -> None:
        self._step = step
        self._seen: dict[nn.Parameter, tuple[int, Tensor]] = {}
        self._held: dict[nn.Parameter, weakref.ref[Tensor]] = {}
        self._replaced: dict[nn.Parameter, int] = {}
        self._parameters = list(parameters)
        watching = weakref.ref(self)
        for parameter in self._parameters:
            hook = parameter.register_post_accumulate_grad_hook(partial(_note, watching))
            weakref.finalize(self, hook.remove)

    def note(self, parameter: nn.Parameter) -> None:
        """The gradient of `parameter` is as it should be now."""
        step, grad = self._step(), parameter.grad
        if grad is None or step is None:
            self._seen.pop(parameter, None)
            return
        held = self._held.get(parameter)
        if held is not None and held() is not grad and self._seen.get(parameter, ())[:1] == (step,):
            self._replaced[parameter] = step
        self._held[parameter] = weakref.ref(grad)
        self._seen[parameter] = step, _measure(grad)

    def note_all(self) -> None:
        """All that were noted are as they should be now."""
        for parameter in list(self._seen):
            self._held.pop(parameter, None)
            self.note(parameter)

    def forget(self) -> None:
        """The gradients were zeroed."""
        self._seen.clear()
        self._held.clear()
        self._replaced.clear()

    def check_hooks(self) -> None:
        """Raise `AdapterError` where hooks may change the silo's gradients before they are seen."""
        hooked = [p for p in self._parameters if p.requires_grad and self._is_hooked(p)]
        if hooked:
            raise AdapterError(
                f"{len(hooked)} of the silo's tensors have hooks on their gradients, which the "
                "trunk's cannot have: look at gradients and change them after the backward pass, "
                "those of all model.parameters() alike, or attach_trunk(..., "
                "trunk_parameters=True)"
            )

    def _is_hooked(self, parameter: nn.Parameter) -> bool:
        """Whether gradients pass someone's hook before they are noted here."""
        after = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
        for hook in after.values():
            if not _is_note(hook):
                return True
            if hook.args[0]() is self:
                break
        return bool(parameter._backward_hooks)

    def check(self, step: int, change: GradientChange, largest: float | None) -> None:
        """Raise `AdapterError` unless the gradients were changed as the trunk's will be.

        Args:
            step: Number of the trunk's gradient.
            change: What the trunk will do.
            largest: The magnitude of the largest element of the trunk's gradient before that; None
                where it was zeroed.
        """
        seen = {p: before for p, (number, before) in self._seen.items() if number == step}
        held = [(p.grad, before) for p, before in seen.items() if p.grad is not None]
        if largest is None:
            changed = sum(bool(grad.any()) for grad, _ in held)
        else:
            changed = len(seen) - len(held)
        if held and largest is not None:
            now = torch.stack([_measure(grad).cpu() for grad, _ in held])
            before = torch.stack([measured.cpu() for _, measured in held])
            narrow = any(grad.dtype in (torch.float16, torch.bfloat16) for grad, _ in held)
            changed += _unlike(now, before, change, largest, tolerance=2e-2 if narrow else 1e-4)
        zeroed = sum(number == step for number in self._replaced.values())
        if zeroed:
            raise AdapterError(
                f"the gradients of {zeroed} of the silo's tensors were zeroed, and the trunk's was "
                "not: zero those of all model.parameters(), as optimizer.zero_grad() and "
                "model.zero_grad() do, or attach_trunk(..., trunk_parameters=True)"
            )
        if changed:
            raise AdapterError(
                f"the gradients of {changed} of the silo's tensors were changed by hand, and the "
                "trunk's were not, or otherwise: change all of model.parameters() alike and at "
                "once, as clip_grad_norm_ does, or attach_trunk(..., trunk_parameters=True)"
                + _of_processes()
            )


def _of_processes() -> str:
    """What to do where another process may have changed them; empty where there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ""
    return (
        ", which is also what averages the gradients of several processes, each with a session of "
        "its own (DistributedDataParallel, accelerate)"
    )


def _unlike(
    now: Tensor, before: Tensor, change: GradientChange, largest: float, *, tolerance: float
) -> int:
    """How many rows, norm and largest element of a tensor each, were changed otherwise."""

    def close(a: Tensor, b: Tensor) -> Tensor:
        return torch.isclose(a, b, rtol=tolerance, atol=0.0, equal_nan=True)

    scaled = close(now, before * change.scale).all(dim=1)
    if change.scale != 1.0 or bool(scaled.all()):
        return int((~scaled).sum())
    bound = change.clip if math.isfinite(change.clip) else float(now[:, 1].max())
    if bound < largest and not math.isfinite(change.clip):
        return int((~scaled).sum())  # a bound that would have changed the trunk's as well
    reached = before[:, 1] > bound
    clipped = close(now[:, 1], before[:, 1].clamp(max=bound)) & (
        now[:, 0] <= before[:, 0] * (1 + tolerance)
    )
    return int((~torch.where(reached, clipped, scaled)).sum())


def _measure(grad: Tensor) -> Tensor:
    found = grad.detach()
    return torch.stack(
        [torch.linalg.vector_norm(found, order, dtype=torch.float32) for order in (2, math.inf)]
    )


def _is_note(hook: object) -> TypeGuard[partial[None]]:
    """Whether a hook is a watch's, be it that of another optimizer."""
    return isinstance(hook, partial) and hook.func is _note


def _note(watch: "weakref.ref[GradientWatch]", parameter: nn.Parameter) -> None:
    watching = watch()
    if watching is not None:
        watching.note(parameter)
