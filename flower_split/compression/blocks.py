"""Block codecs: a scale for every block of a token's row, and a small code for every element."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from flower_split.compression.codec import Codec
from flower_split.devices import to_host
from flower_split.errors import WireError

BLOCK = 64
"""Elements of a row that share a scale; a row is the tensor's last dimension."""

LEAST_SCALE = 2.0**-100
"""A block whose largest magnitude is smaller is scaled as if it were this."""

# One scale on the wire: bfloat16 has float32's range at half its bytes, and what its rounding adds
# to the error (2 ** -8 of it) cannot be told from fp32 scales on real activations.
_SCALE = torch.bfloat16


class BlockCodec(Codec):
    """Rounds every element to a multiple, or a level, of the largest magnitude of its block.

    A row, the last dimension, is divided into blocks of `BLOCK` elements, the last of which may be
    shorter, so that a block never mixes two tokens. On the wire come the scales of all blocks in
    order, each the block's largest magnitude in bfloat16, then the codes of all elements in order.

    The error of an element is at most `error` times the largest magnitude of its block (times
    `LEAST_SCALE`, if that is larger), and half a unit in the last place of the tensor's dtype.
    Zeros stay zeros. Encoding is deterministic, and of a decoded float32 tensor it is exact.

    Works on the tensor's own device; only the encoded bytes leave it.

    Nothing is kept from one tensor to the next. Error feedback adds what rounding dropped to the
    next message, which is sound where messages add up in one place; here the next message belongs
    to other tokens, and their gradients pass other activations. As Rudakov et al. 2024
    (arXiv:2401.07788) found for gradients between the stages of a model, it does not help.
    """

    error: ClassVar[float]

    @abstractmethod
    def code_bytes(self, num_elements: int) -> int:
        """Bytes of the codes of `num_elements` elements."""

    @abstractmethod
    def to_codes(self, blocks: Tensor, scales: Tensor) -> Tensor:
        """One byte an element, 8-bit integers, for float32 `blocks` (N, width) of `scales` (N, 1).

        `blocks / scales` is within 1 + 2 ** -8 in magnitude.
        """

    @abstractmethod
    def pack(self, codes: Tensor, out: Tensor) -> None:
        """Write contiguous `codes`, of any shape, to `out`, one-dimensional `uint8`."""

    @abstractmethod
    def unpack(self, packed: Tensor, num_elements: int) -> Tensor:
        """The units of the codes in `packed`: one-dimensional float32, magnitudes up to 1.

        Raises:
            WireError: a code that no encoder makes.
        """

    def encode(self, tensor: Tensor) -> Tensor:
        if tensor.numel() == 0:
            return torch.empty(0, dtype=torch.uint8)
        rows, row, width, per_row = _layout(tensor.shape)
        elements = tensor.detach().to(torch.float32).reshape(rows, row)
        padded = _padded(elements, per_row * width).reshape(rows * per_row, width)
        largest = padded.abs().amax(1, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            raise WireError("NaN or infinite values, expected finite ones")
        scales = largest.to(_SCALE).clamp_(LEAST_SCALE, _largest_scale(tensor.dtype))
        codes = self.to_codes(padded, scales.to(torch.float32)).view(rows, per_row * width)
        payload = torch.empty(
            self.encoded_bytes(tensor.shape), dtype=torch.uint8, device=tensor.device
        )
        split = scales.numel() * _SCALE.itemsize
        payload[:split].view(_SCALE).copy_(scales.view(-1))
        self.pack(codes[:, :row].contiguous(), payload[split:])
        return to_host(payload)

    def decode(self, payload: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        expected = self.encoded_bytes(shape)
        if payload.numel() != expected:
            raise WireError(f"{payload.numel()} bytes, expected {expected} for {tuple(shape)}")
        if expected == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        rows, row, width, per_row = _layout(shape)
        split = rows * per_row * _SCALE.itemsize
        scales = payload[:split].view(_SCALE).to(torch.float32).view(-1, 1)
        low, high = torch.aminmax(scales)
        bound = _largest_scale(dtype)
        # written so that NaN is refused too; with scales in these bounds no element overflows
        if not (float(low) >= LEAST_SCALE and float(high) <= bound):
            raise WireError(f"a scale outside {LEAST_SCALE:g} to {bound:g}, the bounds of {dtype}")
        units = self.unpack(payload[split:], rows * row).view(rows, row)
        padded = _padded(units, per_row * width).reshape(rows * per_row, width)
        values = padded.mul_(scales).view(rows, per_row * width)[:, :row]
        return values.contiguous().view(tuple(shape)).to(dtype)

    def encoded_bytes(self, shape: Sequence[int]) -> int:
        num_elements = math.prod(shape)
        if num_elements == 0:
            return 0
        rows, _, _, per_row = _layout(shape)
        return rows * per_row * _SCALE.itemsize + self.code_bytes(num_elements)


def _layout(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Rows, elements of a row, elements of a block, and blocks of a row."""
    row = shape[-1] if len(shape) else 1
    width = min(row, BLOCK)
    return math.prod(shape) // row, row, width, -(-row // width)


def _padded(rows: Tensor, length: int) -> Tensor:
    """`rows` with zeros up to `length` elements each; themselves where nothing is missing."""
    missing = length - rows.shape[1]
    return pad(rows, (0, missing)) if missing else rows


def _largest_scale(dtype: torch.dtype) -> float:
    """The largest bfloat16 that `dtype` can hold: what decoding yields is finite."""
    largest = min(torch.finfo(dtype).max, torch.finfo(_SCALE).max)
    mantissa, exponent = math.frexp(largest)
    return math.ldexp(math.floor(math.ldexp(mantissa, 8)), exponent - 8)
