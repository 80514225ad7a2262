"""Largest magnitude of what is stepped and aggregated, with which neither overflows.

AdamW of gradients and parameters within it, with the constants that `OptimizerSettings` allows,
has finite moments and finite parameters in float32: second moments are at most its square, and an
update at most `LARGEST` over eps, times the learning rate.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from flower_split.errors import WireError

LARGEST = 1e15
"""Training that works stays far below it, and what strategies make of such values, products of two
with any allowed alpha, is still finite in float32."""


def largest_of(tensors: Iterable[Tensor]) -> float:
    """Magnitude of the largest element; NaN where one is, 0 where there is none."""
    held = [tensor for tensor in tensors if tensor.numel()]
    if not held:
        return 0.0
    return float(torch.stack(torch._foreach_norm(held, math.inf)).float().max())


def check_magnitudes(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise `WireError` unless every element of `tensors` is finite and at most `LARGEST`.

    Args:
        what: They are, for the text, such as "the step's gradient".
        tensors: Float tensors on one device.
    """
    found = largest_of(tensors)
    if not found <= LARGEST:
        raise WireError(
            f"{what} has an element of {found:g}, expected at most {LARGEST:g}: the training "
            "diverged, and nothing was changed. Lower the learning rate, or set "
            "train.max-grad-norm"
        )
