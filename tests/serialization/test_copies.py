"""How often a payload is copied: what `sending` and `receiving` say of it, counted."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flower_split.compression.table import CODEC_TABLE
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import TensorRule, check_header
from flower_split.serialization.tensors import CHUNK_BYTES, TensorAssembler, encode_tensor, frames

CHUNKS = 16
SHAPE = (CHUNKS, 256, 1024)
"""A chunk a row, in float32."""
SMALL = CHUNK_BYTES // 8
"""More than everything else that is allocated meanwhile."""
FP32 = TensorRule(role=pb.ROLE_H1, dtype=torch.float32, codec=CODEC_TABLE["fp32"], num_dims=3)


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Python objects made inside never take more than so many bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= num_bytes
    finally:
        tracemalloc.stop()


def test_a_codec_that_changes_nothing_copies_nothing() -> None:
    tensor = torch.randn(SHAPE)
    payload = encode_tensor(tensor, FP32).payload
    assert payload.data_ptr() == tensor.data_ptr()
    assert FP32.codec.decode(payload, SHAPE, torch.float32).data_ptr() == payload.data_ptr()


def test_python_holds_one_chunk_of_a_tensor_that_is_sent() -> None:
    """First as `bytes`, then as the serialized frame; what protobuf holds in between is not seen
    here, and ends with its frame."""
    outgoing = encode_tensor(torch.randn(SHAPE), FP32)
    with at_most(CHUNK_BYTES + SMALL):
        num_frames = 0
        for frame in frames(pb.ClientFrame(), [outgoing]):
            assert len(frame.SerializeToString()) > CHUNK_BYTES
            num_frames += 1
    assert num_frames == CHUNKS


class _Counted(SimpleNamespace):
    """A chunk that counts how often its data, which protobuf copies each time, is asked for."""

    accesses = 0

    @property
    def data(self) -> bytes:
        type(self).accesses += 1
        return bytes(CHUNK_BYTES)


def test_protobuf_copies_at_every_access_and_is_asked_once() -> None:
    chunk = pb.Chunk(data=bytes(8))
    assert chunk.data is not chunk.data
    header = encode_tensor(torch.zeros(SHAPE), FP32).header
    assembler = TensorAssembler([check_header(header, FP32)])
    counted: Any = [_Counted(tensor=0, offset=i * CHUNK_BYTES) for i in range(CHUNKS)]
    with at_most(CHUNK_BYTES + SMALL):
        for one in counted:
            assembler.add(one)
    assert _Counted.accesses == CHUNKS
    # No copy of what was filled, or there would be another one.
    (tensor,), (again,) = assembler.tensors(), assembler.tensors()
    assert tensor.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("taken", [bytearray(8), memoryview(bytes(8))])
def test_protobuf_takes_nothing_but_bytes(taken: Any) -> None:
    """The day that this fails, the first copy of the sending side can go."""
    with pytest.raises(TypeError):
        pb.Chunk(data=taken)
