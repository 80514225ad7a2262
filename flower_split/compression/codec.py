"""Codec: the interface of everything that turns a tensor into bytes and back."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flower_split.devices import to_host

PRIVATE_NUMBERS = 1000
"""The least number on the wire of a codec that another package adds."""

if sys.byteorder != "little":  # every codec sends the host's own element bytes
    raise ImportError("flower_split sends tensors little-endian; this machine is big-endian")


class Codec(ABC):
    """One encoding of tensors.

    Encoded bytes are a one-dimensional `uint8` tensor on the CPU rather than a `bytes` object:
    torch aligns its own storage, and matrix kernels may round differently on unaligned memory.
    """

    name: ClassVar[str]
    """The codec's name in a run's configuration."""
    wire: ClassVar[int]
    """The codec's number on the wire: of the enum `Codec`, or at least `PRIVATE_NUMBERS`."""

    @abstractmethod
    def encode(self, tensor: Tensor) -> Tensor:
        """The bytes of `tensor`, any shape and device; they may share memory with `tensor`.

        Raises:
            WireError: `tensor` holds values that this codec does not carry.
        """

    @abstractmethod
    def decode(self, payload: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor that `payload` encodes, on the CPU; it may share memory with `payload`.

        Raises:
            WireError: `payload` does not hold a valid tensor of this shape and dtype.
        """

    @abstractmethod
    def encoded_bytes(self, shape: Sequence[int]) -> int:
        """How many bytes `encode` makes of a tensor of `shape`."""


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
