"""The 4-bit codec: sixteen levels, spaced as normally distributed values need them."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from flower_split.compression.blocks import BlockCodec
from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb

LEVELS = (
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
)
"""NormalFloat4: quantiles of the normal distribution, with an exact zero."""

# Elements are looked up on a grid this fine, which is ten times faster than a search among the
# levels; the level found is nearest to within half a cell.
_CELLS = 2048
_MARGIN = 16  # scales are rounded, so an element may exceed its scale by 2 ** -8


class Nf4(BlockCodec):
    """NormalFloat4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E), in blocks of a row.

    A code is an index into `LEVELS`, parts of the scale. Two codes share a byte, the first one in
    its lower half; after an odd number of them the last upper half is 0. The error is at most
    15.3 % of the block's largest magnitude; a row of 64 elements takes 34 bytes, 0.133 of
    float32's. On the activations and gradients of two trained models its root-mean-square error
    was 6 to 13 % smaller than that of evenly spaced levels in blocks of half the size.
    """

    name = "nf4"
    wire = pb.CODEC_NF4
    error = 0.153  # half the widest gap, half a cell, and a scale that may have been rounded up

    def __init__(self) -> None:
        levels = torch.tensor(LEVELS, dtype=torch.float32)
        cells = torch.arange(-_CELLS - _MARGIN, _CELLS + _MARGIN + 1) / _CELLS
        self._nearest = torch.bucketize(cells, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        # both elements of every byte: the lower half's first
        self._pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=1)

    def code_bytes(self, num_elements: int) -> int:
        return (num_elements + 1) // 2

    def to_codes(self, blocks: Tensor, scales: Tensor) -> Tensor:
        # half a cell more, because the conversion to integers cuts off
        cells = (blocks * (_CELLS / scales)).add_(_CELLS + _MARGIN + 0.5).to(torch.int32)
        return self._nearest.to(blocks.device).index_select(0, cells.view(-1))

    def pack(self, codes: Tensor, out: Tensor) -> None:
        flat = codes.view(-1)
        if flat.numel() % 2:
            flat = pad(flat, (0, 1))
        pairs = flat.view(torch.int16)  # the first code is the lower byte
        out.copy_((pairs | (pairs >> 4)).bitwise_and_(0xFF))

    def unpack(self, packed: Tensor, num_elements: int) -> Tensor:
        if num_elements % 2 and int(packed[-1]) > 15:
            raise WireError("a code after the last element, expected 0")
        return self._pairs.index_select(0, packed.to(torch.int32)).view(-1)[:num_elements]
