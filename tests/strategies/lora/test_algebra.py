"""Every LoRA strategy against dense algebra in float64, over ranks, alphas, weights and silos."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_silos import MODULES, Federation, Silo, toy_adapter, toy_names, whole_update

from flower_split.config.model import LoraSettings
from flower_split.strategies import (
    FedAvgLoRA,
    FedExLoRA,
    FedSALoRA,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    RoLoRA,
)

pytestmark = pytest.mark.medium

ALPHAS = st.sampled_from([0.5, 1.0, 8.0, 16.0, 33.0])
EXAMPLES = st.integers(1, 1000)


@st.composite
def silos(draw, *, mixed):
    count = draw(st.integers(1, 5))
    common = draw(st.integers(1, 6))
    ranks = [draw(st.integers(1, 6)) if mixed else common for _ in range(count)]
    return [
        Silo(r=r, alpha=draw(ALPHAS), rslora=draw(st.booleans()), examples=draw(EXAMPLES))
        for r in ranks
    ]


@st.composite
def settings_for(draw, drawn):
    """The global adapter's settings: the silos' rank where they have one, anything otherwise."""
    return LoraSettings(r=drawn[0].r, alpha=draw(st.floats(0.5, 64.0)), rslora=draw(st.booleans()))


def make(kind, lora, count, **options):
    return kind(
        lora=lora,
        fraction_evaluate=0.0,
        min_train_nodes=count,
        min_available_nodes=count,
        **options,
    )


def run(kind, drawn, lora, rounds, **options):
    federation = Federation(drawn)
    strategy = make(kind, lora, len(drawn), **options)
    initial = toy_adapter(lora.r, seed=7)
    return federation, strategy, initial, federation.run(strategy, initial, rounds)


def close(ours, theirs):
    assert float((ours - theirs).abs().max()) <= 2e-6 * max(float(theirs.norm()), 1e-3)


exactly = settings(deadline=None, max_examples=12)


@exactly
@given(st.data())
def test_flora_folds_the_exact_average_of_any_ranks_in_every_round(data):
    drawn = data.draw(silos(mixed=True))
    lora = data.draw(settings_for(drawn))
    federation, strategy, _, state = run(FLoRA, drawn, lora, 2)
    for module in MODULES:
        expected = sum(federation.average_update(number, module) for number in (1, 2))
        close(whole_update(state, module, strategy.scaling.factor), expected)
        assert not state[toy_names(module)[1]].any()


@pytest.mark.medium
@exactly
@given(st.data())
def test_fedex_lora_is_exact_in_every_round(data):
    drawn = data.draw(silos(mixed=False))
    lora = data.draw(settings_for(drawn))
    federation, strategy, _, first = run(FedExLoRA, drawn, lora, 1)
    scale = strategy.scaling.factor
    for module in MODULES:
        close(whole_update(first, module, scale), federation.average_update(1, module))
    again, strategy, _, second = run(FedExLoRA, drawn, lora, 2)
    for module in MODULES:
        trained = {name: first[name] for name in toy_names(module)}
        folded_before = whole_update(first, module, scale) - whole_update(trained, module, scale)
        expected = folded_before + again.average_update(2, module)
        close(whole_update(second, module, scale), expected)


@exactly
@given(st.data())
def test_flex_lora_is_the_best_approximation_of_the_average(data):
    drawn = data.draw(silos(mixed=True))
    lora = data.draw(settings_for(drawn))
    federation, strategy, _, state = run(FlexLoRA, drawn, lora, 1)
    for module in MODULES:
        rank = max(lora.r, *(silo.r for silo in drawn))
        dense = federation.average_update(1, module)
        u, s, v = torch.linalg.svd(dense)
        best = (u[:, : len(s)] * s)[:, :rank] @ v[: len(s)][:rank]
        close(whole_update(state, module, strategy.scaling.factor), best)


@exactly
@given(st.data(), st.booleans())
def test_het_lora_averages_zero_padded_factors(data, sparsity):
    drawn = data.draw(silos(mixed=True))
    lora = data.draw(settings_for(drawn))
    federation, strategy, _, state = run(HetLoRA, drawn, lora, 1, sparsity_weights=sparsity)
    scale = strategy.scaling.factor
    rank = max(lora.r, *(silo.r for silo in drawn))
    for module in MODULES:
        a_name, b_name = toy_names(module)
        weights = federation.weights()
        if sparsity:
            norms = [
                silo.scaling.factor * (had[b_name].double() @ had[a_name].double()).norm()
                for silo, had in zip(drawn, federation.own(1), strict=True)
            ]
            weights = [float(norm / sum(norms)) for norm in norms]
        a, b = torch.zeros(rank, MODULES[module][0]), torch.zeros(MODULES[module][1], rank)
        a, b = a.double(), b.double()
        for weight, silo, had in zip(weights, drawn, federation.own(1), strict=True):
            a[: silo.r] += weight * had[a_name]
            b[:, : silo.r] += weight * silo.scaling.factor / scale * had[b_name]
        close(state[a_name], a)
        close(state[b_name], b)


@exactly
@given(st.data())
def test_fedavg_lora_averages_the_factors_at_one_scale(data):
    drawn = data.draw(silos(mixed=False))
    lora = data.draw(settings_for(drawn))
    federation, strategy, _, state = run(FedAvgLoRA, drawn, lora, 1)
    for module in MODULES:
        a_name, b_name = toy_names(module)
        had = federation.own(1)
        weights = federation.weights()
        close(state[a_name], sum(w * h[a_name].double() for w, h in zip(weights, had, strict=True)))
        scaled = [s.scaling.factor / strategy.scaling.factor for s in drawn]
        close(
            state[b_name],
            sum(w * f * h[b_name].double() for w, f, h in zip(weights, scaled, had, strict=True)),
        )


@pytest.mark.medium
@exactly
@given(st.data())
@pytest.mark.parametrize("kind", [FFALoRA, RoLoRA])
def test_with_one_factor_frozen_the_average_is_exact(kind, data):
    drawn = data.draw(silos(mixed=False))
    lora = data.draw(settings_for(drawn))
    for rounds in (1, 2):
        federation, strategy, initial, state = run(kind, drawn, lora, rounds)
        for module in MODULES:
            expected = federation.average_update(rounds, module)
            close(whole_update(state, module, strategy.scaling.factor), expected)
    if kind is FFALoRA:
        for module in MODULES:
            a = toy_names(module)[0]
            assert torch.equal(state[a].float(), initial[a])


@exactly
@given(st.data())
def test_fedsa_lora_averages_a_and_never_sees_b(data):
    drawn = data.draw(silos(mixed=False))
    lora = data.draw(settings_for(drawn))
    federation, _, initial, state = run(FedSALoRA, drawn, lora, 2)
    for module in MODULES:
        a_name, b_name = toy_names(module)
        last = [federation.had[2, i][a_name].double() for i in range(len(drawn))]
        close(state[a_name], sum(w * a for w, a in zip(federation.weights(), last, strict=True)))
        assert torch.equal(state[b_name].float(), initial[b_name])
    for number, _, arrays, _ in federation.received:
        assert all("lora_B" not in name for name in arrays) == (number == 2)


@pytest.mark.medium
@exactly
@given(st.data())
@pytest.mark.parametrize("kind", [FLoRA, FlexLoRA, HetLoRA])
def test_a_silo_that_is_known_gets_its_own_rank_and_scale(kind, data):
    drawn = data.draw(silos(mixed=True))
    lora = data.draw(settings_for(drawn))
    federation, strategy, initial, _ = run(kind, drawn, lora, 2)
    before = Federation(drawn)
    state = before.run(make(kind, lora, len(drawn)), initial)
    for number, partition, arrays, instructions in federation.received:
        silo = drawn[partition]
        for module in MODULES:
            a_name, b_name = toy_names(module)
            if number == 1:
                assert instructions.scale == strategy.scaling.factor
                assert torch.equal(arrays[a_name], initial[a_name])
                continue
            assert instructions.scale == silo.scaling.factor
            have = min(silo.r, state[a_name].shape[0])
            assert arrays[a_name].shape[0] == arrays[b_name].shape[1] == have
            own = silo.scaling.factor * arrays[b_name].double() @ arrays[a_name].double()
            first = state[b_name][:, :have] @ state[a_name][:have]
            close(own, strategy.scaling.factor * first)
