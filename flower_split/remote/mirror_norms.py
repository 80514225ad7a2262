"""Norms of the gradient that stands for the trunk's: right ones are given, others refused.

The three numbers have the Euclidean norm of the trunk's gradient and its largest element only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flower_split.errors import AdapterError

_ORDERS: dict[Callable[..., Any], str] = {
    torch._foreach_norm: "ord",
    torch.linalg.vector_norm: "ord",
    torch.linalg.norm: "ord",
    torch.norm: "p",
    Tensor.norm: "p",
}
"""Functions of a norm, and what they call its order, their second argument."""


class MirroredGradient(Tensor):
    """A gradient, (3,), whose first element is the magnitude of the largest of the trunk's."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What `func` returns, as plain tensors.

        Raises:
            AdapterError: it is a norm that these numbers do not have in common with the trunk's.
        """
        named = dict(kwargs or {})
        if func in _ORDERS:
            order = args[1] if len(args) > 1 else named.get(_ORDERS[func])
            if _number(order) == math.inf:
                args = tuple(_largest(value) for value in args)
                named = {name: _largest(value) for name, value in named.items()}
            elif _number(order) != 2.0:
                raise AdapterError(
                    f"a norm of order {order} was asked for of gradients of which the trunk holds "
                    "a part, and it tells norms of orders 2 and inf alone: take one of those, as "
                    "in clip_grad_norm_(..., norm_type=2), or attach_trunk(..., "
                    "trunk_parameters=True)"
                )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **named)


def _number(order: Any) -> float:
    """A norm's order; those that are left out and "fro" are Euclidean."""
    return 2.0 if order in (None, "fro") else float(order) if _is_number(order) else math.nan


def _is_number(order: Any) -> bool:
    return isinstance(order, (int, float)) or order in ("inf", "-inf")


def _largest(value: Any) -> Any:
    """`value` with the largest element in place of all three."""
    if isinstance(value, MirroredGradient):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)[:1]
    if isinstance(value, (list, tuple)):
        return [_largest(item) for item in value]
    return value
