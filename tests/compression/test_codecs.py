"""Codecs: exact where they can be, bounded where not, and loud about what they cannot carry."""

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_split.compression.codec import Codec, is_finite
from flower_split.compression.floats import Fp16, Fp32
from flower_split.compression.raw import RAW_BOOL, RAW_INT64, Raw
from flower_split.compression.table import CODEC_TABLE, check_complete, round_trip
from flower_split.config.sections import CODECS
from flower_split.errors import ConfigError, WireError

FLOATS = ("fp32", "bf16", "fp16")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
# relative error of rounding to nearest: half a unit in the last place
PRECISION = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# below the smallest normal number the error is absolute
FLOOR = {"fp32": 2.0**-149, "bf16": 2.0**-133, "fp16": 2.0**-24}


def decoded(codec: Codec, tensor: Tensor) -> Tensor:
    payload = codec.encode(tensor)
    assert payload.dtype == torch.uint8 and payload.dim() == 1
    assert payload.numel() == codec.encoded_bytes(tensor.shape)
    return codec.decode(payload, tensor.shape, tensor.dtype)


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype = torch.float32, bound: float = 6e4) -> Tensor:
    elements = st.floats(-bound, bound, width=32)
    array = draw(npst.arrays(np.float32, draw(SHAPES), elements=elements))
    return torch.from_numpy(array).to(dtype)


def test_the_table_is_complete_and_consistent() -> None:
    assert tuple(sorted(CODEC_TABLE)) == tuple(sorted(CODECS))
    for name in CODECS:
        codec = CODEC_TABLE.named(name)
        assert codec.name == name
        assert CODEC_TABLE.numbered(codec.wire) is codec


@pytest.mark.parametrize("rows", [[Fp32()], [Fp32(), Fp32(), Fp16()], []])
def test_an_incomplete_table_cannot_be_imported(rows: list[Codec]) -> None:
    with pytest.raises(ImportError, match="codecs"):
        check_complete(rows)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int3'"):
        CODEC_TABLE.named("int3")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FLOATS)
def test_a_round_trip_keeps_shape_dtype_and_value(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    tensor = data.draw(tensors(dtype=dtype))
    result = decoded(CODEC_TABLE[name], tensor)
    assert result.shape == tensor.shape and result.dtype == tensor.dtype
    bound = tensor.double().abs() * PRECISION[name] + FLOOR[name]
    assert bool(((result.double() - tensor.double()).abs() <= bound).all())


@pytest.mark.medium
@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", d) for d in DTYPES] + [("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_codec_at_least_as_wide_as_the_dtype_is_exact(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    tensor = data.draw(tensors(dtype=dtype))
    assert torch.equal(decoded(CODEC_TABLE[name], tensor), tensor)


@settings(max_examples=60, deadline=None)
@given(tensor=tensors())
@pytest.mark.parametrize("name", CODECS)
def test_a_second_round_trip_changes_nothing(name: str, tensor: Tensor) -> None:
    once = round_trip(tensor, CODEC_TABLE[name])
    assert torch.equal(round_trip(once, CODEC_TABLE[name]), once)


@pytest.mark.parametrize("name", CODECS)
def test_non_contiguous_tensors(name: str) -> None:
    tensor = torch.randn(6, 5, 4)
    for view in (tensor.transpose(0, 2), tensor[::2, 1:], tensor[:, :1].expand(6, 7, 4)):
        expected = round_trip(view.contiguous(), CODEC_TABLE[name])
        assert torch.equal(round_trip(view, CODEC_TABLE[name]), expected)


@pytest.mark.parametrize("name", CODECS)
def test_a_tensor_of_the_graph_is_encoded_detached(name: str) -> None:
    leaf = torch.randn(3, requires_grad=True)
    assert not round_trip(leaf * 2, CODEC_TABLE[name]).requires_grad


def test_fp32_sends_the_tensor_s_own_memory() -> None:
    tensor = torch.randn(4, 4)
    assert Fp32().encode(tensor).data_ptr() == tensor.data_ptr()


def test_fp16_overflow_advises_bf16() -> None:
    with pytest.raises(WireError, match=r"h1: values beyond 65504.*use bf16"):
        round_trip(torch.tensor([1.0, 7e4]), CODEC_TABLE["fp16"], "h1")


def test_bf16_overflow_is_an_error_too() -> None:
    with pytest.raises(WireError, match="bf16"):
        CODEC_TABLE["bf16"].encode(torch.tensor([torch.finfo(torch.float32).max]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", CODECS)
def test_values_that_are_not_finite_are_refused_both_ways(name: str, value: float) -> None:
    codec = CODEC_TABLE[name]
    tensor = torch.zeros(100)
    tensor[57] = value
    with pytest.raises(WireError, match="NaN or infinite"):
        codec.encode(tensor)
    if name not in FLOATS:
        return  # no code stands for such a value; test_blocks.py has their scales
    payload = codec.encode(torch.zeros(100))
    payload[:] = tensor.to(codec.element).view(torch.uint8)  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="NaN or infinite"):
        codec.decode(payload, (100,), torch.float32)


def test_a_value_that_only_the_wire_can_hold_is_refused_on_arrival() -> None:
    payload = Fp32().encode(torch.tensor([1e6]))
    with pytest.raises(WireError, match="NaN or infinite"):
        Fp32().decode(payload, (1,), torch.float16)


@pytest.mark.parametrize("codec", [*CODEC_TABLE.values(), RAW_INT64, RAW_BOOL])
def test_a_wrong_number_of_bytes_is_refused(codec: Codec) -> None:
    dtype = codec.element if isinstance(codec, Raw) else torch.float32
    with pytest.raises(WireError, match="expected"):
        codec.decode(torch.zeros(5, dtype=torch.uint8), (3, 2), dtype)


@settings(max_examples=60, deadline=None)
@given(array=npst.arrays(np.int64, SHAPES))
def test_raw_integers_are_exact(array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor = torch.from_numpy(array)
    assert torch.equal(decoded(RAW_INT64, tensor), tensor)


@settings(max_examples=60, deadline=None)
@given(array=npst.arrays(np.bool_, SHAPES))
def test_raw_booleans_are_exact(array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor = torch.from_numpy(array)
    assert torch.equal(decoded(RAW_BOOL, tensor), tensor)


def test_a_byte_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(WireError, match="0 and 1"):
        RAW_BOOL.decode(torch.tensor([0, 1, 2], dtype=torch.uint8), (3,), torch.bool)


def test_raw_refuses_another_dtype() -> None:
    with pytest.raises(WireError, match=r"expected torch\.int64"):
        RAW_INT64.encode(torch.zeros(2))
    with pytest.raises(WireError, match="expected"):
        RAW_INT64.decode(torch.zeros(8, dtype=torch.uint8), (1,), torch.float32)


@pytest.mark.medium
@settings(max_examples=200, deadline=None)
@given(array=npst.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_finite_agrees_with_isfinite(dtype: torch.dtype, array: np.ndarray) -> None:  # type: ignore[type-arg]
    tensor = torch.from_numpy(array).to(dtype)
    assert is_finite(tensor) == bool(torch.isfinite(tensor).all())
