"""The receiving side: chunks become tensors, each byte accounted for.

How often a payload is copied on its way in:

1. from the kernel's into gRPC's buffers, and from there into a serialized frame;
2. into the frame, by protobuf, which does not refer to the bytes that it parsed;
3. into a `bytes` object, by protobuf, at every access to a chunk's data: it is taken once;
4. into the tensor's own memory, because chunks must be put together, and because torch's kernels
   want their memory aligned better than `bytes` are.

Decoding fp32 into a float32 tensor copies nothing more; see `tests/serialization/test_copies.py`.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from flower_split.errors import SequenceError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced
from flower_split.serialization.sending import CHUNK_BYTES


class TensorAssembler:
    """Collects the chunks of the tensors that one frame announced.

    Memory for a tensor is taken when its first chunk arrives.
    """

    def __init__(self, announced: Sequence[Announced]) -> None:
        self.announced = tuple(announced)
        self._payloads: list[Tensor] = []
        self._offset = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all announced tensors together, as encoded."""
        return sum(tensor.num_bytes for tensor in self.announced)

    @property
    def complete(self) -> bool:
        """Whether every announced byte has arrived."""
        if not self.announced:
            return True
        full = len(self._payloads) == len(self.announced)
        return full and self._offset == self.announced[-1].num_bytes

    def add(self, chunk: pb.Chunk) -> None:
        """Take the next chunk.

        Raises:
            SequenceError: it is not the next one.
            WireError: it is empty, above 1 MiB, or reaches beyond the announced bytes.
        """
        if self.complete:
            raise SequenceError("a chunk without a tensor that awaits one")
        index = max(len(self._payloads) - 1, 0)
        offset = self._offset
        if self._payloads and offset == self.announced[index].num_bytes:
            index, offset = index + 1, 0
        if (chunk.tensor, chunk.offset) != (index, offset):
            raise SequenceError(
                f"chunk at tensor {chunk.tensor}, offset {chunk.offset};"
                f" expected tensor {index}, offset {offset}"
            )
        tensor = self.announced[index]
        data = chunk.data  # protobuf copies it at every access
        end = offset + len(data)
        if not 0 < len(data) <= CHUNK_BYTES or end > tensor.num_bytes:
            raise WireError(
                f"{tensor.rule.name}: chunk of {len(data)} bytes at offset {offset},"
                f" expected 1 to {min(CHUNK_BYTES, tensor.num_bytes - offset)}"
            )
        if offset == 0:
            self._payloads.append(torch.empty(tensor.num_bytes, dtype=torch.uint8))
        self._payloads[index].numpy().data[offset:end] = data
        self._offset = end

    def tensors(self) -> list[Tensor]:
        """The decoded tensors, in the order of their headers.

        Raises:
            WireError: a checksum or a value is not what it should be; says which tensor.
        """
        if not self.complete:
            raise SequenceError("tensors were asked for before all of their chunks arrived")
        return [
            _decode(payload, tensor)
            for payload, tensor in zip(self._payloads, self.announced, strict=True)
        ]


def _decode(payload: Tensor, tensor: Announced) -> Tensor:
    rule = tensor.rule
    found = zlib.crc32(payload.numpy().data)
    if found != tensor.crc32:
        raise WireError(
            f"{rule.name}: checksum {found:08x} of the bytes that arrived,"
            f" announced was {tensor.crc32:08x}"
        )
    try:
        return rule.codec.decode(payload, tensor.shape, rule.dtype)
    except WireError as exc:
        raise WireError(f"{rule.name}: {exc}") from exc
