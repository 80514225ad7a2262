"""Instructions and scalings cross the wire, and malformed ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.errors import AdapterError
from flower_split.lowrank import (
    Instructions,
    Scaling,
    combined,
    folded_name,
    pair_up,
    plain_name,
    scaling_fields,
    scaling_from_fields,
)


@given(
    st.builds(
        Instructions,
        trains=st.sampled_from([frozenset("A"), frozenset("B"), frozenset("AB")]),
        personal=st.frozensets(st.text(min_size=1), max_size=3),
        scale=st.none() | st.floats(1e-3, 1e3),
        proximal_mu=st.floats(0.0, 10.0),
        controlled=st.booleans(),
    )
)
def test_instructions_come_back_as_they_were(instructions):
    assert Instructions.from_fields(instructions.to_fields()) == instructions


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora.trains": "C"}, "must name A, B or both"),
        ({"lora.trains": 3}, "must name A, B or both"),
        ({"lora.keeps": "x"}, "must be a list"),
        ({"lora.scale": 0.0}, "must be a number above 0"),
        ({"lora.scale": float("inf")}, "must be a number above 0"),
        ({"proximal-mu": -1.0}, "must be a number from 0"),
    ],
)
def test_malformed_instructions_are_refused(fields, said):
    with pytest.raises(AdapterError, match=said):
        Instructions.from_fields(fields)


def test_a_scaling_comes_back_as_it_was():
    scaling = Scaling(r=8, alpha=16.0, rslora=True)
    assert scaling_from_fields(scaling_fields(scaling)) == scaling


@pytest.mark.parametrize(
    "wrong", [{"r": "8"}, {"r": True}, {"r": 0}, {"alpha": None}, {"rslora": 1}]
)
def test_a_malformed_scaling_is_refused(wrong):
    with pytest.raises(AdapterError, match="silo's lora"):
        scaling_from_fields({"r": 8, "alpha": 16.0, "rslora": False, **wrong})


@pytest.mark.parametrize(
    ("plain", "folded"),
    [
        ("m.q.lora_A.weight", "m.q.lora_A.folded.weight"),
        ("m.lora_embedding_B", "m.lora_embedding_B.folded"),
    ],
)
def test_folded_tensors_are_named_as_inside_a_peft_model(plain, folded):
    assert folded_name(plain) == folded
    assert plain_name(folded) == plain


def test_a_factor_without_its_partner_is_refused():
    with pytest.raises(AdapterError, match="without its partner"):
        pair_up(["m.lora_A.weight"])
    with pytest.raises(AdapterError, match="is not a LoRA factor"):
        combined({"m.weight": None}, 1.0)
