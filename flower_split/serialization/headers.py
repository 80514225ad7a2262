"""Tensor headers: what a receiver expects of a tensor, checked before its bytes arrive."""

from dataclasses import dataclass

import torch

from flower_split.compression.codec import Codec
from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.tables import DTYPE_FROM_WIRE, DTYPE_TO_WIRE, ROLE_NAMES

MAX_DIM = 1 << 20
"""Bound of a single dimension, so that the byte count of three fits 64 bits."""


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """What both parties agreed on for the tensor of one role."""

    role: pb.Role
    dtype: torch.dtype
    codec: Codec
    num_dims: int

    @property
    def name(self) -> str:
        """The tensor's name in errors."""
        return ROLE_NAMES[int(self.role)]


@dataclass(frozen=True, kw_only=True)
class Announced:
    """A tensor whose header passed its checks."""

    rule: TensorRule
    shape: tuple[int, ...]
    num_bytes: int
    crc32: int


def check_header(header: pb.TensorHeader, rule: TensorRule) -> Announced:
    """The tensor that `header` announces; allocates nothing.

    Raises:
        WireError: role, dtype, codec, number of dimensions, a dimension or the byte count is
            not what `rule` expects.
    """
    name = rule.name
    if header.role != rule.role:
        raise WireError(f"expected tensor {name}, got {ROLE_NAMES.get(header.role, header.role)}")
    if header.dtype != DTYPE_TO_WIRE[rule.dtype]:
        got = DTYPE_FROM_WIRE.get(header.dtype, f"unknown number {header.dtype}")
        raise WireError(f"{name}: dtype {got}, agreed was {rule.dtype}")
    if header.codec != rule.codec.wire:
        raise WireError(
            f"{name}: codec number {header.codec}, agreed was {rule.codec.wire} ({rule.codec.name})"
        )
    if len(header.shape) != rule.num_dims:
        raise WireError(f"{name}: {len(header.shape)} dimensions, expected {rule.num_dims}")
    shape = tuple(header.shape)
    if not all(0 < size <= MAX_DIM for size in shape):
        raise WireError(f"{name}: shape {shape}, expected sizes from 1 to {MAX_DIM}")
    expected = rule.codec.encoded_bytes(shape)
    if header.num_bytes != expected:
        raise WireError(f"{name}: {header.num_bytes} bytes announced, expected {expected}")
    return Announced(rule=rule, shape=shape, num_bytes=expected, crc32=header.crc32)
