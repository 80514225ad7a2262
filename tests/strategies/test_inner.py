import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedProx

from flower_split.config.run_config import read_run_config
from flower_split.config.sections import StrategyConfig
from flower_split.errors import ConfigError
from flower_split.strategies import INNER_STRATEGIES, LoraStrategy, build_inner, inner_problems
from flower_split.strategies.inner import check_exact, least_nodes, weight_key

NEEDED = {"qfedavg": {"client_learning_rate": 0.1}}


@pytest.mark.parametrize("name", sorted(INNER_STRATEGIES))
def test_every_named_strategy_is_made(name):
    settings = StrategyConfig(
        name=name, fraction_train=0.5, min_nodes=4, options=NEEDED.get(name, {})
    )
    made = build_inner(settings)
    assert made.fraction_train == 0.5
    assert made.min_train_nodes == made.min_evaluate_nodes == made.min_available_nodes == 4
    if isinstance(made, LoraStrategy):
        with pytest.raises(ConfigError, match="hold the whole model"):
            check_exact(made)
    else:
        check_exact(made)


def test_options_reach_the_strategy():
    made = build_inner(StrategyConfig(name="fedadam", options={"eta": 0.5, "beta_1": 0}))
    assert (made.eta, made.beta_1) == (0.5, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "fedagv"}, "'fedagv' is not known; did you mean 'fedavg'?"),
        ({"name": "fedprox"}, "not offered: its proximal term"),
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


def test_a_strategy_derived_from_a_refused_one_is_refused_too():
    class Mine(FedProx):
        pass

    with pytest.raises(ConfigError, match="proximal term"):
        check_exact(Mine(proximal_mu=0.1))


def test_what_a_wrapped_strategy_is_asked_for():
    inner = FedAvg(min_available_nodes=7, weighted_by_key="tokens")
    wrapper = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 0.1, 7)
    assert least_nodes(wrapper, "train") == least_nodes(wrapper, "evaluate") == 7
    assert least_nodes(FedAvg(fraction_evaluate=0.0), "evaluate") == 0
    assert weight_key(wrapper) == "tokens"
    assert weight_key(object()) == "num-examples"


def test_a_refused_strategy_inside_a_wrapper_is_refused_too():
    wrapper = DifferentialPrivacyServerSideFixedClipping(FedProx(proximal_mu=0.1), 0.1, 0.1, 2)
    with pytest.raises(ConfigError, match="FedProx"):
        check_exact(wrapper)
