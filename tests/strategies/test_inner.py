import re
from dataclasses import replace

import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from flower_split.config.model import LoraSettings
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import StrategyConfig
from flower_split.errors import ConfigError
from flower_split.strategies import INNER_STRATEGIES, build_inner, inner_problems
from flower_split.strategies.inner import allowance_of, check_inner, least_nodes, weight_key

NEEDED = {"qfedavg": {"client_learning_rate": 0.1}}


@pytest.mark.parametrize("name", sorted(INNER_STRATEGIES))
def test_every_named_strategy_is_made(name):
    settings = StrategyConfig(
        name=name, fraction_train=0.5, min_nodes=4, options=NEEDED.get(name, {})
    )
    made = build_inner(settings)
    assert made.fraction_train == 0.5
    assert made.min_train_nodes == made.min_evaluate_nodes == made.min_available_nodes == 4
    check_inner(made, LoraSettings())


def test_options_reach_the_strategy():
    made = build_inner(StrategyConfig(name="fedadam", options={"eta": 0.5, "beta_1": 0}))
    assert (made.eta, made.beta_1) == (0.5, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "fedagv"}, "'fedagv' is not known; did you mean 'fedavg'?"),
        ({"options": {"eta": 1.0}}, "unknown key 'strategy.eta' for strategy 'fedavg'"),
        (
            {"options": {"fraction_trian": 1.0}},
            "'strategy.fraction-trian' for strategy 'fedavg'; did you mean 'strategy.fraction-tr",
        ),
        ({"name": "fedadam", "options": {"etta": 1.0}}, "did you mean 'strategy.eta'?"),
        ({"name": "krum", "options": {"num_malicious_nodes": 1.5}}, "must be a whole number"),
        ({"name": "qfedavg"}, "strategy.client-learning-rate is missing"),
        ({"name": "fedtrimmedavg", "options": {"beta": 0.7}}, "refuses its options: `beta` must"),
    ],
)
def test_what_is_wrong_is_said(settings, said):
    problems = inner_problems(StrategyConfig(**settings))
    assert len(problems) == 1
    assert said in problems[0]
    with pytest.raises(ConfigError, match="strategy"):
        build_inner(StrategyConfig(**settings))


def test_its_problems_come_with_those_of_the_other_keys():
    with pytest.raises(ConfigError) as caught:
        read_run_config(
            {"model.name": "m", "lora.r": 0, "strategy.etta": 1.0, "strategy.name": "fedyogi"},
            check_strategy=inner_problems,
        )
    assert "lora.r" in str(caught.value)
    assert "did you mean 'strategy.eta'?" in str(caught.value)


def test_what_a_wrapped_strategy_is_asked_for():
    inner = FedAvg(min_available_nodes=7, weighted_by_key="tokens")
    wrapper = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 0.1, 7)
    assert least_nodes(wrapper, "train") == least_nodes(wrapper, "evaluate") == 7
    assert least_nodes(FedAvg(fraction_evaluate=0.0), "evaluate") == 0
    assert weight_key(wrapper) == "tokens"
    assert weight_key(object()) == "num-examples"


@pytest.mark.parametrize("name", ["fedexlora", "flora", "fedsalora", "rolora", "scaffoldlora"])
def test_a_wrapper_that_compares_tensors_takes_no_strategy_that_changes_them(name):
    lora = LoraSettings()
    inner = build_inner(StrategyConfig(name=name), lora)
    wrapper = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 0.1, 2)
    with pytest.raises(ConfigError, match=r"FixedClipping compares .*'fedavglora'"):
        check_inner(wrapper, lora)
    average = build_inner(StrategyConfig(name="fedavglora"), lora)
    check_inner(DifferentialPrivacyServerSideFixedClipping(average, 0.1, 0.1, 2), lora)


@pytest.mark.parametrize(
    ("name", "silo", "said"),
    [
        ("fedavg", {"r": 4}, "lora.r 4, the run lora.r 8, and FedAvg .*leave lora-r.*'flora'"),
        ("fedexlora", {"r": 4}, "lora.r 4, the run lora.r 8, and fedexlora"),
        ("scaffoldlora", {"alpha": 2.0}, "lora.alpha 2, the run lora.alpha 16, and scaffoldlora"),
        ("flora", {"rslora": True}, "lora.rslora"),
        ("flora", {"r": 65}, "lora.r 65, and silos of this run may have 64 at most: lower lora-r"),
        ("flora", {"alpha": 1e9}, "more than 1e"),
        ("flora", {"r": 64, "alpha": 3.0}, ""),
        ("fedsalora", {"alpha": 3.0}, ""),
    ],
)
def test_which_ranks_and_alphas_silos_may_have(name, silo, said):
    lora = LoraSettings()
    allowed = allowance_of(build_inner(StrategyConfig(name=name), lora), lora)
    problem = allowed.problem(replace(allowed.scaling, **silo))
    assert bool(problem) == bool(said)
    assert re.search(said, problem)


def test_personal_parts_allow_what_the_strategy_inside_allows():
    lora = LoraSettings()
    inner = build_inner(StrategyConfig(name="flexlora", personal=("layers.0",)), lora)
    assert allowance_of(inner, lora).ranks
    wrapper = DifferentialPrivacyServerSideFixedClipping(
        build_inner(StrategyConfig(name="hetlora"), lora), 0.1, 0.1, 2
    )
    assert not allowance_of(wrapper, lora).ranks


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fedavglora", {"ranks": (4, 8)}, "lora.ranks are 4, 8, the run's is 8, .*'flora'"),
        ("fedavg", {"ranks": (4,)}, "lora.ranks are 4, .*FedAvg"),
        ("scaffoldlora", {"alphas": (2.0, 16.0)}, "lora.alphas are 2, 16, the run's is 16"),
    ],
)
def test_ranks_of_simulated_silos_that_cannot_be_aggregated_are_refused_at_start(
    name, settings, said
):
    lora = LoraSettings(**settings)
    with pytest.raises(ConfigError, match=said):
        check_inner(build_inner(StrategyConfig(name=name), lora), lora)
    check_inner(build_inner(StrategyConfig(name="flora"), lora), lora)
    equal = LoraSettings(ranks=(8, 8), alphas=(16.0,))
    check_inner(build_inner(StrategyConfig(name=name), equal), equal)
