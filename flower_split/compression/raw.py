"""Codec of what is not floating point: attention masks and position ids."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flower_split.compression.codec import Codec, as_bytes
from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb


class Raw(Codec):
    """Sends the dtype's own bytes. One instance a dtype, since a byte count needs its width."""

    name = "raw"
    wire = pb.CODEC_RAW

    def __init__(self, element: torch.dtype) -> None:
        self.element = element

    def encode(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != self.element:
            raise WireError(f"dtype {tensor.dtype}, expected {self.element}")
        return as_bytes(tensor)

    def decode(self, payload: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        expected = self.encoded_bytes(shape)
        if payload.numel() != expected or dtype != self.element:
            raise WireError(
                f"{payload.numel()} bytes of {dtype}, expected {expected} of {self.element}"
            )
        # a bool is one byte of 0 or 1; any other byte is undefined behaviour in torch
        if dtype == torch.bool and payload.numel() and int(payload.max()) > 1:
            raise WireError("bytes other than 0 and 1 in a tensor of bool")
        return payload.view(dtype).reshape(tuple(shape))

    def encoded_bytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.element.itemsize


RAW_BOOL = Raw(torch.bool)
RAW_INT64 = Raw(torch.int64)
