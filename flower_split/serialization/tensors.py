"""Tensors on the wire: headers and chunks in a sequence of frames, and tensors again.

How often a payload is copied on its way out, after its codec, which copies nothing of a contiguous
float32 tensor that is sent as fp32:

1. into a `bytes` object for each chunk: protobuf takes nothing else;
2. into the frame that owns the chunk, by protobuf;
3. into the serialized frame, by protobuf;
4. into gRPC's buffers, and from there into the kernel's.

Each copy is of one chunk, and gone before the next one is made: a tensor as a whole is in no second
place. Serializing by hand would save 2 and 3. It was tried: the processor time of a round trip fell
by less than a tenth, which is less than 0.5 % of a training step, and not worth a second encoder.

And on its way in:

1. from the kernel's into gRPC's buffers, and from there into a serialized frame;
2. into the frame, by protobuf, which does not refer to the bytes that it parsed;
3. into a `bytes` object, by protobuf, at every access to a chunk's data: it is taken once;
4. into the tensor's own memory, because chunks must be put together, and because torch's kernels
   want their memory aligned better than `bytes` are.

Decoding fp32 into a float32 tensor copies nothing more. `tests/serialization/test_copies.py` counts
the copies, and fails on the day that protobuf takes memory that is not `bytes`.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from flower_split.devices import beside_compute
from flower_split.errors import SequenceError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced, TensorRule
from flower_split.serialization.tables import DTYPE_TO_WIRE

Frame = TypeVar("Frame", pb.ClientFrame, pb.ServerFrame)

CHUNK_BYTES = 1 << 20
"""Payload of a full frame; on loopback 1 MiB moved nearly twice as fast as one large message."""
MAX_FRAME_BYTES = 2 * CHUNK_BYTES
"""Bound of one serialized frame: a request or reply and a full payload."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outgoing:
    """An encoded tensor, ready to be sent."""

    header: pb.TensorHeader
    payload: Tensor


def encode_tensor(tensor: Tensor, rule: TensorRule) -> Outgoing:
    """Encode `tensor` under `rule`.

    Raises:
        WireError: `tensor` is not what the parties agreed on, or its codec cannot carry it.
    """
    if tensor.dtype != rule.dtype or tensor.dim() != rule.num_dims or tensor.numel() == 0:
        raise WireError(
            f"{rule.name}: {tensor.dtype} of shape {tuple(tensor.shape)}, expected {rule.dtype}"
            f" with {rule.num_dims} dimensions and at least one element"
        )
    try:
        with beside_compute(tensor):
            payload = rule.codec.encode(tensor)
    except WireError as exc:
        raise WireError(f"{rule.name}: {exc}") from exc
    header = pb.TensorHeader(
        role=rule.role,
        dtype=DTYPE_TO_WIRE[rule.dtype],
        codec=cast("pb.Codec", rule.codec.wire),  # or a number that no enum has
        shape=tensor.shape,
        num_bytes=payload.numel(),
        crc32=zlib.crc32(payload.numpy().data),
    )
    return Outgoing(header=header, payload=payload)


def frames(head: Frame, tensors: Sequence[Outgoing]) -> Iterator[Frame]:
    """`head` and what must follow it: every frame filled with up to 1 MiB of chunks.

    `head` itself is filled, so that a small tensor takes no frame of its own.
    """
    frame, room = head, CHUNK_BYTES
    for index, outgoing in enumerate(tensors):
        view = outgoing.payload.numpy().data
        offset = 0
        while offset < len(view):
            if room == 0:
                yield frame
                frame, room = type(head)(), CHUNK_BYTES
            size = min(room, len(view) - offset)
            # The bytes have no name here: they would outlive the frame that has a copy of them.
            frame.chunks.add(tensor=index, offset=offset, data=bytes(view[offset : offset + size]))
            offset, room = offset + size, room - size
    yield frame


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
