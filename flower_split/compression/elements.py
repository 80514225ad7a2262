"""Tensors seen as bytes, and the value checks that every codec shares."""

import torch
from torch import Tensor

from flower_split.devices import to_host


def as_bytes(tensor: Tensor) -> Tensor:
    """The element bytes of `tensor`, one-dimensional `uint8` on the CPU; copied only if needed."""
    whole = to_host(tensor.detach()).contiguous()
    # a contiguous tensor of one or no element may carry any stride; `view` insists on 1
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element of the floating-point `tensor` is NaN or infinite."""
    if tensor.numel() == 0:
        return True
    # one pass without a temporary: both extremes are finite only if every element is
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))
