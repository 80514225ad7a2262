"""Norms of updates: what a silo sent minus what it was given, whatever its rank and scale."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_silos import toy_adapter

from flower_split.lowrank import CONTROL, Scaling, fit_part, fresh_factors, part_of
from flower_split.strategies.hosting.adapter_parts import to_arrays
from flower_split.strategies.hosting.update_norms import (
    CONTROL_CHANGE,
    UPDATE,
    Given,
    update_norms,
)

RUN = Scaling(r=4, alpha=8.0)


def norms(after, before, *, trunk=(), scaling=RUN, run=RUN, scale=None):
    silo = {n: t for n, t in before.items() if n not in trunk}
    held = {n: t for n, t in before.items() if n in trunk}
    gave = Given(silo=to_arrays(silo), trunk=held, scale=scale)
    return update_norms(to_arrays(after), gave, scaling=scaling, run=run)


def moved(state, by=0.01, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return {n: t + by * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def of_all(after, before):
    return math.sqrt(
        sum(float(((after[n].double() - before[n].double()) ** 2).sum()) for n in after)
    )


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_norm_is_that_of_all_tensors_together_wherever_they_lie(data):
    before = toy_adapter(4)
    after = moved(before, data.draw(st.floats(0, 1e6)))
    trunk = data.draw(st.sets(st.sampled_from(sorted(before))))
    assert norms(after, before, trunk=trunk) == {
        UPDATE: pytest.approx(of_all(after, before), rel=1e-12)
    }


@pytest.mark.parametrize("scaling", [None, RUN])
def test_tensors_of_any_name_are_compared_one_by_one(scaling):
    before = {"prompt": torch.ones(2, 3), "layers.0.scale": torch.ones(4)}
    after = {"prompt": torch.ones(2, 3), "layers.0.scale": torch.tensor([1.0, 1.0, 4.0, 5.0])}
    assert norms(after, before, scaling=scaling, run=scaling) == {UPDATE: 5.0}


def test_what_was_given_and_not_sent_does_not_count():
    before = toy_adapter(4)
    sent = {n: t for n, t in moved(before).items() if part_of(n) == "B"}
    assert norms(sent, before)[UPDATE] == pytest.approx(of_all(sent, before), rel=1e-12)


def test_what_was_not_given_counts_as_a_whole():
    assert norms({"a": torch.tensor([3.0, 4.0])}, {"b": torch.zeros(1)}) == {UPDATE: 5.0}


def test_control_variates_are_changes_with_a_norm_of_their_own():
    before = {"m.lora_A.weight": torch.ones(4, 5)}
    variates = {CONTROL + name: torch.full_like(t, 7.0) for name, t in before.items()}
    sent = {CONTROL + name: torch.full_like(t, 0.5) for name, t in before.items()}
    assert norms({**before, **sent}, {**before, **variates}) == {
        UPDATE: 0.0,
        CONTROL_CHANGE: pytest.approx(0.5 * math.sqrt(20)),
    }


@pytest.mark.parametrize("alpha", [2.0, 8.0, 64.0])
def test_the_same_change_of_the_model_has_the_same_norm_at_any_alpha(alpha):
    """The silo's B is smaller where its scale is larger."""
    own = Scaling(r=4, alpha=alpha)
    ratio = RUN.factor / own.factor
    before = toy_adapter(4)
    after = moved(before)
    of_silo = {n: t * ratio if part_of(n) == "B" else t for n, t in after.items()}
    told = {n: t * ratio if part_of(n) == "B" else t for n, t in before.items()}
    wanted = pytest.approx(of_all(after, before), rel=1e-5)
    assert norms(of_silo, told, scaling=own, scale=own.factor)[UPDATE] == wanted
    # A silo whose alpha is not known yet is given the global adapter at the run's scale.
    assert norms(of_silo, before, scaling=own, scale=RUN.factor)[UPDATE] == wanted


@pytest.mark.parametrize("r", [2, 6])
@pytest.mark.parametrize("kind", ["lora_", "lora_embedding_"])
def test_a_silo_of_another_rank_is_measured_by_what_it_trained(r, kind):
    """As a silo fits what it is given to its own rank: nothing of that is an update."""
    name = "m." + kind
    tail = "" if "embedding" in kind else ".weight"
    names = {part: f"{name}{part}{tail}" for part in "AB"}
    before = {names["A"]: torch.randn(4, 50), names["B"]: torch.randn(40, 4)}
    fresh = fresh_factors(
        r, 50, 40, generator=torch.Generator().manual_seed(3), embedding="embedding" in kind
    )
    own = {
        names["A"]: fit_part("A", before[names["A"]], fresh.a),
        names["B"]: fit_part("B", before[names["B"]], fresh.b),
    }
    scaling = Scaling(r=r, alpha=2.0 * r)
    assert norms(own, before, scaling=scaling, scale=RUN.factor) == {UPDATE: 0.0}
    after = moved(own)
    found = norms(after, before, scaling=scaling, scale=RUN.factor)[UPDATE]
    assert 0.5 * of_all(after, own) < found <= of_all(after, own) * (1 + 1e-6)


@pytest.mark.parametrize("part", ["A", "B"])
def test_further_components_of_any_size_are_found(part):
    """Whichever factor is large: the other may be small, and the product too."""
    before = toy_adapter(4, zero_b=True)
    rank = 6
    after = {}
    for name, tensor in before.items():
        axis = 0 if part_of(name) == "A" else 1
        shape = list(tensor.shape)
        shape[axis] = rank - 4
        value = 1e3 if part_of(name) == part else 1e-6
        after[name] = torch.cat([tensor, torch.full(shape, value)], dim=axis)
    scaling = Scaling(r=rank, alpha=2.0 * rank)
    assert norms(after, before, scaling=scaling, scale=RUN.factor)[UPDATE] > 1e3


def test_values_up_to_the_largest_that_a_reply_may_have_do_not_overflow():
    before = {"a": torch.zeros(1000)}
    after = {"a": torch.full((1000,), 1e15)}
    assert norms(after, before)[UPDATE] == pytest.approx(1e15 * math.sqrt(1000))


def test_float64_of_a_strategy_is_compared_as_it_was_sent():
    gave = Given(silo=ArrayRecord({"a": Array(np.array([0.5]))}), trunk={})
    found = update_norms(
        ArrayRecord({"a": Array(np.array([1.0], np.float32))}), gave, scaling=None, run=None
    )
    assert found == {UPDATE: 0.5}
