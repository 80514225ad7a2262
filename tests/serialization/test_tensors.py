"""Tensors cross the wire unchanged, and every lie in a header or chunk is found."""

import zlib
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_split.compression.raw import RAW_BOOL
from flower_split.compression.table import CODEC_TABLE, round_trip
from flower_split.errors import SequenceError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization import tensors
from flower_split.serialization.headers import MAX_DIM, TensorRule, check_header
from flower_split.serialization.tensors import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    Outgoing,
    TensorAssembler,
    encode_tensor,
    frames,
)


def rule(codec: str = "fp32", dtype: torch.dtype = torch.float32) -> TensorRule:
    return TensorRule(role=pb.ROLE_H1, dtype=dtype, codec=CODEC_TABLE[codec], num_dims=3)


MASK = TensorRule(role=pb.ROLE_ATTENTION_MASK, dtype=torch.bool, codec=RAW_BOOL, num_dims=2)


def wire(tensors: Sequence[Outgoing]) -> list[pb.ClientFrame]:
    """The frames of `tensors`, serialized and parsed."""
    head = pb.ClientFrame(forward=pb.Forward(tensors=[tensor.header for tensor in tensors]))
    return [pb.ClientFrame.FromString(frame.SerializeToString()) for frame in frames(head, tensors)]


def received(stream: Sequence[pb.ClientFrame], rules: Sequence[TensorRule]) -> list[Tensor]:
    headers = stream[0].forward.tensors
    announced = [check_header(header, rule) for header, rule in zip(headers, rules, strict=True)]
    assembler = TensorAssembler(announced)
    for frame in stream:
        for chunk in frame.chunks:
            assembler.add(chunk)
    return assembler.tensors()


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    codec=st.sampled_from(sorted(CODEC_TABLE)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    chunk=st.integers(1, 64),
)
def test_what_arrives_is_what_the_codec_keeps(
    shape: tuple[int, int, int], codec: str, dtype: torch.dtype, chunk: int
) -> None:
    hidden = torch.randn(shape).to(dtype)
    mask = torch.rand(shape[:2]) > 0.5
    rules = (rule(codec, dtype), MASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "CHUNK_BYTES", chunk)
        stream = wire([encode_tensor(hidden, rules[0]), encode_tensor(mask, MASK)])
    arrived = received(stream, rules)
    assert torch.equal(arrived[0], round_trip(hidden, CODEC_TABLE[codec]))
    assert torch.equal(arrived[1], mask)
    sizes = [sum(len(part.data) for part in frame.chunks) for frame in stream]
    assert all(size == chunk for size in sizes[:-1]) and 0 < sizes[-1] <= chunk


def test_large_tensors_travel_in_frames_of_a_mebibyte() -> None:
    hidden = torch.randn(3, 257, 1024)
    stream = wire([encode_tensor(hidden, rule()), encode_tensor(torch.ones(3, 257).bool(), MASK)])
    assert torch.equal(received(stream, (rule(), MASK))[0], hidden)
    assert len(stream) == -(-(hidden.nbytes + 3 * 257) // CHUNK_BYTES)
    assert all(frame.ByteSize() <= MAX_FRAME_BYTES for frame in stream)


def test_a_small_tensor_takes_no_frame_of_its_own() -> None:
    assert len(wire([encode_tensor(torch.randn(1, 1, 64), rule())])) == 1


def test_decoded_tensors_are_aligned_as_torch_aligns_its_own() -> None:
    stream = wire([encode_tensor(torch.randn(1, 3, 5), rule())])
    assert received(stream, (rule(),))[0].data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 3), torch.zeros(2, 3, 4).double(), torch.zeros(2, 0, 4)],
    ids=["dims", "dtype", "empty"],
)
def test_a_sender_refuses_what_was_not_agreed(tensor: Tensor) -> None:
    with pytest.raises(WireError, match=r"h1: .*expected torch.float32 with 3 dimensions"):
        encode_tensor(tensor, rule())


def test_a_sender_names_the_tensor_that_its_codec_cannot_carry() -> None:
    with pytest.raises(WireError, match=r"h1: values beyond 65504.*bf16"):
        encode_tensor(torch.full((1, 1, 1), 1e5), rule("fp16"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("role", pb.ROLE_G2, "expected tensor h1, got g2"),
        ("role", 77, "expected tensor h1, got 77"),
        ("dtype", pb.DTYPE_FLOAT16, "h1: dtype torch.float16, agreed was torch.float32"),
        ("dtype", 99, "h1: dtype unknown number 99"),
        ("codec", pb.CODEC_BF16, "h1: codec number 3, agreed was 2"),
        ("codec", 0, "h1: codec number 0"),
        ("shape", [6, 4], "h1: 2 dimensions, expected 3"),
        ("shape", [2, 3, 4, 1], "h1: 4 dimensions"),
        ("shape", [], "h1: 0 dimensions"),
        ("shape", [2, 0, 4], "sizes from 1"),
        ("shape", [2, MAX_DIM + 1, 4], "sizes from 1"),
        ("shape", [4294967295, 4294967295, 4294967295], "sizes from 1"),
        ("shape", [2, 3, 5], "96 bytes announced, expected 120"),
        ("num_bytes", 95, "95 bytes announced, expected 96"),
        ("num_bytes", 2**63, "bytes announced, expected 96"),
        ("num_bytes", 0, "0 bytes announced"),
    ],
)
def test_a_header_that_lies_is_refused(field: str, value: object, message: str) -> None:
    header = encode_tensor(torch.randn(2, 3, 4), rule()).header
    header.ClearField(field)  # type: ignore[arg-type]
    if isinstance(value, list):
        header.shape.extend(value)
    else:
        setattr(header, field, value)
    with pytest.raises(WireError, match=message):
        check_header(header, rule())


def assembler_for(*tensors: Outgoing) -> TensorAssembler:
    return TensorAssembler([check_header(tensor.header, rule()) for tensor in tensors])


def test_nothing_is_allocated_before_the_first_chunk() -> None:
    header = encode_tensor(torch.zeros(1, 1, 1), rule()).header
    header.ClearField("shape")
    header.shape.extend([MAX_DIM, MAX_DIM, MAX_DIM])
    header.num_bytes = 4 * MAX_DIM**3
    assembler = TensorAssembler([check_header(header, rule())])
    assert not assembler.complete and assembler.num_bytes == 4 * MAX_DIM**3


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        ([(0, 8, 8)], SequenceError, "tensor 0, offset 8; expected tensor 0, offset 0"),
        ([(1, 0, 8)], SequenceError, "tensor 1, offset 0; expected tensor 0, offset 0"),
        ([(0, 0, 8), (0, 0, 8)], SequenceError, "expected tensor 0, offset 8"),
        ([(0, 0, 8), (0, 16, 8)], SequenceError, "expected tensor 0, offset 8"),
        ([(0, 0, 8), (1, 0, 8)], SequenceError, "expected tensor 0, offset 8"),
        ([(0, 0, 96), (0, 96, 1)], SequenceError, "expected tensor 1, offset 0"),
        ([(0, 0, 97)], WireError, "h1: chunk of 97 bytes at offset 0, expected 1 to 96"),
        ([(0, 0, 90), (0, 90, 7)], WireError, "h1: chunk of 7 bytes at offset 90"),
        ([(0, 0, 0)], WireError, "h1: chunk of 0 bytes"),
        ([(0, 0, 96), (1, 0, 96), (1, 96, 1)], SequenceError, "without a tensor"),
    ],
)
def test_chunks_out_of_place_are_refused(
    chunks: list[tuple[int, int, int]], error: type[Exception], message: str
) -> None:
    outgoing = encode_tensor(torch.randn(2, 3, 4), rule())
    assembler = assembler_for(outgoing, outgoing)
    with pytest.raises(error, match=message):
        for tensor, offset, length in chunks:
            assembler.add(pb.Chunk(tensor=tensor, offset=offset, data=bytes(length)))


def test_a_chunk_above_a_mebibyte_is_refused() -> None:
    assembler = assembler_for(encode_tensor(torch.zeros(1, 600, 1024), rule()))
    with pytest.raises(WireError, match="expected 1 to 1048576"):
        assembler.add(pb.Chunk(data=bytes(CHUNK_BYTES + 1)))


def test_tensors_are_not_given_out_before_they_are_complete() -> None:
    assembler = assembler_for(encode_tensor(torch.zeros(1, 1, 4), rule()))
    assembler.add(pb.Chunk(data=bytes(8)))
    with pytest.raises(SequenceError, match="before all of their chunks"):
        assembler.tensors()


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 95), bit=st.integers(0, 7))
def test_a_single_flipped_bit_is_found(position: int, bit: int) -> None:
    outgoing = encode_tensor(torch.ones(2, 3, 4), rule())
    outgoing.payload[position] ^= 1 << bit
    with pytest.raises(WireError, match="h1: checksum"):
        received(wire([outgoing]), (rule(),))


def test_a_value_that_is_not_finite_is_found_under_a_correct_checksum() -> None:
    tensor = torch.ones(2, 3, 4)
    honest = encode_tensor(tensor, rule())
    tensor[1, 2, 3] = float("nan")
    header = encode_tensor(torch.zeros(2, 3, 4), rule()).header
    header.crc32 = zlib.crc32(honest.payload.numpy().data)  # the payload is the tensor's memory
    with pytest.raises(WireError, match="h1: NaN or infinite"):
        received(wire([Outgoing(header=header, payload=honest.payload)]), (rule(),))
