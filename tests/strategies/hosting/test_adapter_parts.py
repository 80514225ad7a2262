import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_split.errors import AdapterError
from flower_split.lowrank import CONTROL, Instructions
from flower_split.strategies.hosting.adapter_parts import AdapterParts, to_arrays

names = st.lists(st.text("abcAB.", min_size=1, max_size=6), min_size=1, max_size=6, unique=True)
floats = st.floats(-1e6, 1e6, width=32)


@st.composite
def adapters(draw):
    chosen = draw(names)
    shapes = {name: draw(hnp.array_shapes(max_dims=2, max_side=3)) for name in chosen}
    values = {
        name: draw(hnp.arrays(np.float32, shape, elements=floats)) for name, shape in shapes.items()
    }
    trunk = draw(st.sets(st.sampled_from(chosen)))
    return shapes, values, trunk


@settings(deadline=None, max_examples=50)
@given(adapters())
def test_splitting_and_joining_gives_the_same_adapter_in_the_same_order(given_adapter):
    shapes, values, trunk_names = given_adapter
    parts = AdapterParts(shapes, trunk_names)
    arrays = ArrayRecord({name: Array(value) for name, value in reversed(values.items())})
    silo, trunk = parts.split(arrays)
    assert set(trunk) == trunk_names
    assert set(silo) | set(trunk) == set(shapes)
    joined = parts.join(silo, trunk)
    assert list(joined) == list(shapes)
    for name, value in values.items():
        np.testing.assert_array_equal(joined[name].numpy(), value)
        assert joined[name].dtype == "float32"


def test_float64_is_rounded_and_the_original_kept():
    arrays = ArrayRecord({"a": Array(np.array([0.1])), "b": Array(np.array([0.2]))})
    silo, trunk = AdapterParts({"a": (1,), "b": (1,)}, ["b"]).split(arrays)
    assert silo["a"].dtype == "float32"
    assert trunk["b"].dtype == torch.float32
    assert arrays["a"].dtype == "float64"


def test_trunk_tensors_do_not_share_memory_with_the_record():
    arrays = to_arrays({"a": torch.ones(2)})
    _, trunk = AdapterParts({"a": (2,)}, ["a"]).split(arrays)
    trunk["a"].zero_()
    assert arrays["a"].numpy().sum() == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2e15, -2e15])
def test_a_reply_that_cannot_be_aggregated_is_refused(value):
    parts = AdapterParts({"a": (1,), "b": (1,)}, ["b"])
    good, bad = torch.tensor([1e15]), torch.tensor([value])
    parts.join(to_arrays({"a": good}), {"b": good})
    for silo, trunk in ((good, bad), (bad, good)):
        with pytest.raises(AdapterError, match=r"values (that are not finite|beyond 1e\+15)"):
            parts.join(to_arrays({"a": silo}), {"b": trunk})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_aggregate_that_is_not_finite_is_refused(value):
    arrays = to_arrays({"a": torch.tensor([value])})
    with pytest.raises(AdapterError, match="a has values that are not finite"):
        AdapterParts({"a": (1,)}, []).split(arrays)


SHAPES = {f"m.layers.{n}.q.lora_{part}.weight": (1, 1) for n in range(4) for part in "AB"}


def of_layers(*layers):
    return [name for name in SHAPES if int(name.split(".")[2]) in layers]


def filled(names, value):
    return {name: torch.full((1, 1), float(value)) for name in names}


def test_what_either_party_may_hold_is_given_to_both_and_taken_from_who_has_it():
    parts = AdapterParts(SHAPES, of_layers(1, 2), of_layers(1))
    whole = to_arrays(filled(SHAPES, 1))
    silo, trunk = parts.split(whole)
    assert list(silo) == of_layers(0, 1, 3)
    assert list(trunk) == of_layers(1, 2)
    assert list(parts.silo_shapes) == of_layers(0, 1, 3)
    for held in ((0, 3), (0, 1, 3)):
        own = of_layers(*held)
        rest = [name for name in SHAPES if name not in own]
        joined = parts.join(to_arrays(filled(own, 2)), filled(rest, 3))
        assert list(joined) == list(SHAPES)
        assert {n: float(a.numpy().item()) for n, a in joined.items()} == {
            name: 2.0 if name in own else 3.0 for name in SHAPES
        }


@pytest.mark.parametrize(
    ("silo", "trunk", "said"),
    [
        ((0, 3), (2,), "2 tensors missing"),  # of layer 1, which then nobody has
        ((0, 1, 3), (1, 2), "2 unknown"),  # which then both have
        ((0, 1, 2, 3), (1, 2), "4 unknown"),
        ((0, 1, 2, 3), (2,), "2 unknown"),
        ((1, 3), (2,), "2 tensors missing"),
        ((), (1, 2), "4 tensors missing"),
    ],
)
def test_a_reply_that_is_not_the_rest_is_refused(silo, trunk, said):
    parts = AdapterParts(SHAPES, of_layers(1, 2), of_layers(1))
    with pytest.raises(AdapterError, match=said):
        parts.join(to_arrays(filled(of_layers(*silo), 2)), filled(of_layers(*trunk), 3))


def test_folded_factors_and_control_variates_go_with_their_tensors():
    parts = AdapterParts(SHAPES, of_layers(1, 2), of_layers(1))
    own = [f"m.layers.{n}.q.lora_{part}.folded.weight" for n in range(4) for part in "AB"]
    controls = [f"{CONTROL}{name}" for name in SHAPES]
    arrays = to_arrays(filled([*SHAPES, *own, *controls], 1))
    silo, trunk = parts.split(arrays, Instructions(scale=2.0))
    assert {name for name in arrays if name not in silo} == {
        name for name in arrays if ".layers.2." in name
    }
    assert set(trunk) == {n for n in arrays if ".layers.1." in n or ".layers.2." in n}
