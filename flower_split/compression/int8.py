"""The 8-bit codec: 255 evenly spaced levels between plus and minus a block's largest magnitude."""

import torch
from torch import Tensor

from flower_split.compression.blocks import BlockCodec
from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb

_LEVELS = 127


class Int8(BlockCodec):
    """Block-wise absolute-maximum quantisation (Dettmers et al. 2022, arXiv:2110.02861), linear.

    A code c from -127 to 127 stands for `c / 127` of the scale. The error is at most 0.4 % of the
    block's largest magnitude; a row of 64 elements takes 66 bytes, 0.258 of float32's.
    """

    name = "int8"
    wire = pb.CODEC_INT8
    error = 0.00396  # half a step, of a scale that bfloat16 may have rounded up

    def code_bytes(self, num_elements: int) -> int:
        return num_elements

    def to_codes(self, blocks: Tensor, scales: Tensor) -> Tensor:
        # 127 times 1 + 2 ** -8 rounds to 127 still
        return (blocks * (_LEVELS / scales)).round_().to(torch.int8)

    def pack(self, codes: Tensor, out: Tensor) -> None:
        out.copy_(codes.view(torch.uint8).view(-1))

    def unpack(self, packed: Tensor, num_elements: int) -> Tensor:
        codes = packed.view(torch.int8)
        if int(codes.amin()) < -_LEVELS:
            raise WireError(f"code {int(codes.amin())}, expected -{_LEVELS} to {_LEVELS}")
        return codes.to(torch.float32).div_(_LEVELS)
