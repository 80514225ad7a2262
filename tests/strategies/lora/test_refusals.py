"""What a LoRA strategy cannot do it refuses, and names one that can."""

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from lora_silos import Federation, Silo, toy_adapter

from flower_split.config.model import LoraSettings
from flower_split.config.sections import StrategyConfig
from flower_split.errors import AdapterError, ConfigError, RoundError
from flower_split.strategies import INNER_STRATEGIES, LoraStrategy, build_inner

LORA = LoraSettings(r=4, alpha=8.0)
KINDS = {
    name: kind
    for name, kind in INNER_STRATEGIES.items()
    if isinstance(kind, type) and issubclass(kind, LoraStrategy)
}
EQUAL_RANKS = sorted(name for name, kind in KINDS.items() if not kind.mixed_ranks)


def make(name, lora=LORA, **settings):
    return build_inner(StrategyConfig(name=name, fraction_evaluate=0.0, **settings), lora)


def test_every_class_knows_its_name():
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}


@pytest.mark.parametrize(
    ("old", "new"), [("kept_parts", "personal_parts"), ("orders", "instructions")]
)
def test_a_method_by_its_old_name_is_refused_naming_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"MyLoRA overrides {old}, .* rename it to {new}"):
        type("MyLoRA", (KINDS["fedavglora"],), {old: lambda self: frozenset("B")})


@pytest.mark.parametrize("name", EQUAL_RANKS)
def test_mixed_ranks_are_refused_at_the_first_reply_naming_strategies_that_take_them(name):
    federation = Federation([Silo(r=4), Silo(r=2)])
    with pytest.raises(ConfigError, match=r"ranks \[2, 4\].*'flora'.*'flexlora'.*'hetlora'"):
        federation.run(make(name), toy_adapter(4))


def test_an_initial_adapter_of_another_rank_is_refused_at_start():
    federation = Federation([Silo(), Silo()])
    with pytest.raises(ConfigError, match=r"has rank 3 .* lora.r 4"):
        federation.run(make("fedexlora"), toy_adapter(3))


@pytest.mark.parametrize("name", ["ffalora", "fedsalora", "rolora"])
def test_embeddings_are_refused_where_their_a_would_stay_zero(name):
    federation = Federation([Silo(), Silo()], kind="lora_embedding_")
    with pytest.raises(ConfigError, match=r"embedding.*'fedexlora'"):
        federation.run(make(name), toy_adapter(4, kind="lora_embedding_"))


@pytest.mark.parametrize("name", ["fedexlora", "flora", "flexlora", "hetlora"])
def test_embeddings_are_aggregated_by_the_others(name):
    federation = Federation([Silo(), Silo()], kind="lora_embedding_")
    state = federation.run(make(name), toy_adapter(4, kind="lora_embedding_"), rounds=2)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_tensors_that_are_no_factors_are_refused_naming_fedavg():
    federation = Federation([Silo(), Silo()])
    initial = {**toy_adapter(4), "base_model.model.q.lora_magnitude_vector.weight": torch.ones(3)}
    with pytest.raises(AdapterError, match=r"is not a LoRA factor.*'fedavg'"):
        federation.run(make("flora"), initial)


def test_control_variates_need_one_scale():
    federation = Federation([Silo(alpha=8.0), Silo(alpha=16.0)])
    with pytest.raises(ConfigError, match=r"\[2.0, 4.0\].*'fedavglora' or 'fedexlora'"):
        federation.run(make("scaffoldlora"), toy_adapter(4))


def test_everything_personal_leaves_nothing_even_for_krum_to_compare():
    federation = Federation([Silo(), Silo()])
    with pytest.raises(ConfigError, match="leaves nothing for Krum to aggregate or compare"):
        federation.run(make("krum", personal=("layers",)), toy_adapter(4))


def test_a_personal_module_that_does_not_exist_is_refused():
    federation = Federation([Silo(), Silo()])
    with pytest.raises(ConfigError, match=r"names 'layers.9'"):
        federation.run(make("flora", personal=("layers.9",)), toy_adapter(4))


def spoilt(change):
    def tamper(partition, content):
        if partition == 0:
            change(content)

    return tamper


def _other_shape(content):
    arrays = content["arrays"].to_torch_state_dict()
    first = next(iter(arrays))
    content["arrays"] = ArrayRecord({**arrays, first: torch.zeros(9, 9)})


def _not_finite(content):
    arrays = content["arrays"].to_torch_state_dict()
    next(iter(arrays.values()))[0, 0] = float("nan")
    content["arrays"] = ArrayRecord(arrays)


def _missing(content):
    arrays = content["arrays"].to_torch_state_dict()
    arrays.pop(next(iter(arrays)))
    content["arrays"] = ArrayRecord(arrays)


def _no_weight(content):
    content["metrics"] = MetricRecord({"num-examples": 0, "train-loss": 1.0})


def _wrong_rank(content):
    content["lora"]["r"] = 0


@pytest.mark.parametrize("change", [_other_shape, _not_finite, _missing, _no_weight, _wrong_rank])
def test_row_30_a_malformed_reply_is_left_out_and_the_round_goes_on(change):
    federation = Federation([Silo(), Silo(), Silo()], tamper=spoilt(change))
    honest = Federation([Silo(), Silo(), Silo()])
    strategy = make("fedavglora")
    state = federation.run(strategy, toy_adapter(4))
    honest.run(make("fedavglora"), toy_adapter(4))
    expected = [honest.had[1, partition] for partition in (1, 2)]
    for name, tensor in state.items():
        mean = (expected[0][name].double() + expected[1][name].double()) / 2
        torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-6)
    assert set(strategy.silos) == {federation.node(1), federation.node(2)}


def test_a_round_without_a_sound_reply_ends_with_the_reasons():
    def tamper(partition, content):
        _not_finite(content)

    federation = Federation([Silo(), Silo()], tamper=tamper)
    with pytest.raises(RoundError, match=r"no reply can be aggregated.*diverged"):
        federation.run(make("flora"), toy_adapter(4))


def test_a_silo_that_says_nothing_is_taken_to_have_the_runs_settings():
    silent = Federation([Silo(silent=True), Silo(silent=True)])
    telling = Federation([Silo(), Silo()])
    ours, theirs = (f.run(make("flora"), toy_adapter(4)) for f in (silent, telling))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def _enormous(content):
    arrays = content["arrays"].to_torch_state_dict()
    content["arrays"] = ArrayRecord({n: torch.full_like(t, 3e38) for n, t in arrays.items()})


def _absurd_alpha(content):
    content["lora"]["alpha"] = 1e300


def _absurd_weight(content):
    content["metrics"]["num-examples"] = 1e308


@pytest.mark.parametrize("change", [_enormous, _absurd_alpha, _absurd_weight])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_row_30_finite_values_that_would_overflow_cost_their_silo_and_no_other(name, change):
    federation = Federation([Silo(), Silo(), Silo()], tamper=spoilt(change))
    strategy = make(name)
    state = federation.run(strategy, toy_adapter(4), rounds=2)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert set(strategy.silos) == {federation.node(1), federation.node(2)}


def test_a_rank_above_the_bound_costs_its_silo():
    federation = Federation([Silo(), Silo(r=65), Silo(r=64)])
    strategy = make("hetlora")
    state = federation.run(strategy, toy_adapter(4))
    assert max(min(tensor.shape) for tensor in state.values()) <= 64
    assert set(strategy.silos) == {federation.node(0), federation.node(2)}


@pytest.mark.parametrize(
    ("name", "changed"), [("fedavglora", Silo(r=2)), ("scaffoldlora", Silo(alpha=4.0))]
)
def test_a_silo_that_changes_its_rank_or_alpha_later_costs_itself_and_no_other(name, changed):
    silos = [Silo(), Silo(), Silo()]
    federation = Federation(silos)
    strategy = make(name)
    state = federation.run(strategy, toy_adapter(4))
    silos[0] = changed
    state = federation.run(strategy, {n: t.float() for n, t in state.items()})
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert set(strategy.silos) == {federation.node(1), federation.node(2)}
