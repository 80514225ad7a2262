"""The small codecs: the error that they promise, at every magnitude, and bytes that lie."""

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_split.compression.blocks import BLOCK, LEAST_SCALE, BlockCodec
from flower_split.compression.int8 import Int8
from flower_split.compression.nf4 import LEVELS, Nf4
from flower_split.compression.table import round_trip
from flower_split.errors import WireError

CODECS = (Int8(), Nf4())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens x row of any finite values, denormals included, with rows around a block's length."""
    tokens = draw(st.integers(1, 3))
    row = draw(st.sampled_from([1, 2, 3, 63, 64, 65, 127, 128, 130]))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    alike = st.floats(-4, 4, width=32)
    kind = draw(st.sampled_from([finite, alike]))
    array = draw(npst.arrays(np.float32, (tokens, row), elements=kind, fill=kind))
    largest = torch.finfo(dtype).max
    return torch.from_numpy(array).clamp(-largest, largest).to(dtype)


def allowed(codec: BlockCodec, tensor: Tensor) -> Tensor:
    """The largest error that `codec` may make of every element of `tensor`, float64."""
    bounds = []
    for block in tensor.double().split(BLOCK, dim=-1):
        largest = block.abs().amax(-1, keepdim=True).clamp_min(LEAST_SCALE)
        bounds.append((codec.error * largest).expand_as(block))
    rounding = UNIT[tensor.dtype] * (tensor.double().abs() + torch.cat(bounds, -1))
    return torch.cat(bounds, -1) + rounding + torch.finfo(tensor.dtype).smallest_normal


@pytest.mark.sampled(keep=2)
@pytest.mark.medium
@settings(max_examples=150, deadline=None)
@given(data=st.data())
@each_dtype
@each_codec
def test_the_error_is_within_its_bound(
    codec: BlockCodec, dtype: torch.dtype, data: st.DataObject
) -> None:
    tensor = data.draw(tensors(dtype))
    arrived = round_trip(tensor, codec)
    assert arrived.shape == tensor.shape and arrived.dtype == dtype and arrived.is_contiguous()
    error = (arrived.double() - tensor.double()).abs()
    assert bool((error <= allowed(codec, tensor)).all())


@each_codec
def test_the_bound_is_not_loose(codec: BlockCodec) -> None:
    tensor = torch.randn(4096, BLOCK, generator=torch.Generator().manual_seed(0))
    error = (round_trip(tensor, codec) - tensor).abs().amax(1) / tensor.abs().amax(1)
    assert 0.9 * codec.error < float(error.max()) <= codec.error


@settings(max_examples=100, deadline=None)
@given(tensor=tensors())
@each_codec
def test_what_was_decoded_is_encoded_exactly(codec: BlockCodec, tensor: Tensor) -> None:
    once = round_trip(tensor, codec)
    assert torch.equal(round_trip(once, codec), once)
    assert torch.equal(codec.encode(tensor), codec.encode(tensor.clone()))


@each_dtype
@each_codec
def test_zeros_stay_zeros_and_equal_elements_equal(codec: BlockCodec, dtype: torch.dtype) -> None:
    assert not round_trip(torch.zeros(2, 3, 70, dtype=dtype), codec).any()
    mixed = torch.randn(2, 3, 70).to(dtype)
    mixed[..., ::3] = 0
    assert not round_trip(mixed, codec)[..., ::3].any()
    level = torch.full((2, 70), -0.75, dtype=dtype)  # a bfloat16, so the scale is exact
    assert torch.equal(round_trip(level, codec), level)


@each_dtype
@each_codec
def test_the_largest_numbers_stay_finite(codec: BlockCodec, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    tensor = torch.tensor([[largest, -largest, 0.5 * largest]], dtype=dtype)
    assert bool(torch.isfinite(round_trip(tensor, codec)).all())


@each_codec
def test_a_token_does_not_disturb_its_neighbours(codec: BlockCodec) -> None:
    tensor = torch.randn(3, 100)
    outlier = tensor.clone()
    outlier[1] *= 1e6
    outlier[2, BLOCK:] *= 1e6
    quiet, loud = round_trip(tensor, codec), round_trip(outlier, codec)
    assert torch.equal(loud[0], quiet[0])
    assert torch.equal(loud[2, :BLOCK], quiet[2, :BLOCK])


@each_codec
def test_decoded_tensors_are_aligned_as_torch_aligns_its_own(codec: BlockCodec) -> None:
    for shape in ((1, 1, 65), (2, 3, 65), (1, 1, 3), (2, 2, 128)):
        assert round_trip(torch.randn(shape), codec).data_ptr() % 64 == 0


@pytest.mark.parametrize("row", [64, 128, 768, 4096])
def test_int8_takes_at_most_27_hundredths_of_fp32(row: int) -> None:
    shape = (2, 128, row)
    assert Int8().encoded_bytes(shape) <= 0.27 * 4 * 2 * 128 * row
    assert Nf4().encoded_bytes(shape) <= 0.14 * 4 * 2 * 128 * row


def test_bytes_of_rows_that_do_not_fill_a_block() -> None:
    # 2 rows x 2 blocks x 2 bytes of scale, and a byte or half a byte an element
    assert Int8().encoded_bytes((2, 65)) == 8 + 130
    assert Nf4().encoded_bytes((1, 65)) == 4 + 33
    assert Nf4().encoded_bytes(()) == 3
    assert Int8().encoded_bytes((5, 0)) == 0


def payload_of(codec: BlockCodec, elements: int = 65) -> Tensor:
    return codec.encode(torch.randn(1, elements))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-40])
@each_codec
def test_a_scale_that_no_encoder_makes_is_refused(codec: BlockCodec, scale: float) -> None:
    payload = payload_of(codec)
    payload[2:4].view(torch.bfloat16)[0] = scale
    with pytest.raises(WireError, match="a scale outside"):
        codec.decode(payload, (1, 65), torch.float32)


@each_codec
def test_a_scale_that_the_dtype_cannot_hold_is_refused(codec: BlockCodec) -> None:
    payload = codec.encode(torch.full((1, 65), 7e4))
    assert bool(codec.decode(payload, (1, 65), torch.bfloat16).isfinite().all())
    with pytest.raises(WireError, match=r"a scale outside .* to 65280"):
        codec.decode(payload, (1, 65), torch.float16)


def test_a_code_that_no_encoder_makes_is_refused() -> None:
    payload = payload_of(Int8())
    payload[-1] = 0x80
    with pytest.raises(WireError, match="code -128, expected -127 to 127"):
        Int8().decode(payload, (1, 65), torch.float32)
    payload = payload_of(Nf4())
    payload[-1] |= 0x10
    with pytest.raises(WireError, match="after the last element"):
        Nf4().decode(payload, (1, 65), torch.float32)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), row=st.sampled_from([1, 7, 64, 65, 130]))
@each_dtype
@each_codec
def test_any_bytes_are_refused_or_finite(
    codec: BlockCodec, dtype: torch.dtype, data: st.DataObject, row: int
) -> None:
    size = codec.encoded_bytes((2, row))
    noise = data.draw(st.binary(min_size=size - 1, max_size=size + 1))
    payload = torch.tensor(list(noise), dtype=torch.uint8)
    try:
        arrived = codec.decode(payload, (2, row), dtype)
    except WireError:
        return
    assert len(noise) == size and arrived.shape == (2, row) and arrived.dtype == dtype
    assert bool(torch.isfinite(arrived).all())


def test_the_levels_are_those_of_the_normal_distribution() -> None:
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2  # the outermost quantile, as the paper chooses it
    upper = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))
    lower = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))
    levels = torch.cat([lower[:-1], upper.flip(0)]) / upper.max()
    assert torch.allclose(torch.tensor(LEVELS, dtype=torch.float64), levels, atol=1e-6)


def test_nf4_takes_the_nearest_level() -> None:
    tensor = torch.linspace(-1, 1, 100 * 63).view(100, 63)
    tensor = torch.cat([torch.ones(100, 1), tensor], dim=1)  # every block's scale is 1
    nearest = (tensor[..., None] - torch.tensor(LEVELS)).abs().amin(-1)
    error = (round_trip(tensor, Nf4()) - tensor).abs()
    assert bool((error <= nearest + 2.0**-11).all())
