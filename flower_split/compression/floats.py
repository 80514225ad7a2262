"""Codecs that send every element as a floating-point number of a fixed width."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flower_split.compression.codec import Codec, as_bytes, is_finite
from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb


class FloatCodec(Codec):
    """Casts to `element` and sends its bytes; exact for tensors of that dtype.

    Values must be finite, before and after the cast.
    """

    element: ClassVar[torch.dtype]
    remedy: ClassVar[str] = ""
    """What to do about values beyond the largest number that `element` holds."""

    def encode(self, tensor: Tensor) -> Tensor:
        elements = tensor.detach().to(self.element)
        if not is_finite(elements):
            largest = torch.finfo(self.element).max
            if is_finite(tensor):
                raise WireError(
                    f"values beyond {largest:g}, the largest that codec {self.name} can carry"
                    f"{self.remedy}"
                )
            raise WireError("NaN or infinite values, expected finite ones")
        return as_bytes(elements)

    def decode(self, payload: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        expected = self.encoded_bytes(shape)
        if payload.numel() != expected:
            raise WireError(f"{payload.numel()} bytes, expected {expected} for {tuple(shape)}")
        tensor = payload.view(self.element).reshape(tuple(shape)).to(dtype)
        if not is_finite(tensor):
            raise WireError("NaN or infinite values, expected finite ones")
        return tensor

    def encoded_bytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.element.itemsize


class Fp32(FloatCodec):
    """IEEE 754 single precision: exact for every supported dtype."""

    name = "fp32"
    wire = pb.CODEC_FP32
    element = torch.float32


class Bf16(FloatCodec):
    """bfloat16: the range of fp32 with 8 significant bits."""

    name = "bf16"
    wire = pb.CODEC_BF16
    element = torch.bfloat16


class Fp16(FloatCodec):
    """IEEE 754 half precision: 11 significant bits, values up to 65504."""

    name = "fp16"
    wire = pb.CODEC_FP16
    element = torch.float16
    remedy = "; use bf16, which has the range of fp32"
