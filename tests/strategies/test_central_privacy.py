"""Central differential privacy: what is published, what is counted, and when it is refused."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx
from small_disk import fill, small_disk
from toy_trunk import ToyHost, honest_reply, toy_config

from flower_split.config.run_config import read_run_config
from flower_split.config.sections import CheckpointConfig, StrategyConfig, TrunkConfig
from flower_split.errors import ConfigError, RoundError, StateError
from flower_split.privacy import Gaussians
from flower_split.strategies import INNER_STRATEGIES, FedAvgLoRA, build_inner, inner_problems
from flower_split.strategies.central_privacy import CentralPrivacy
from flower_split.strategies.inner import central_privacy

pytest.importorskip("dp_accounting")

SILOS = 3
TWO = StrategyConfig(min_nodes=2)
UPDATE = math.sqrt(7 * 1 + 7 * 100)
"""Norm of a toy silo's update: 7 elements of its own by 1, 7 of the trunk by 10."""
UNSEEN = 1e-9
"""Noise that no assertion sees."""


class Killed(BaseException):
    """In place of a signal."""


def private(noise=1.0, clip=1.0, **arguments):
    return CentralPrivacy(FedAvg(min_available_nodes=2), noise=noise, clip=clip, **arguments)


def config(**fields):
    return toy_config(**{"strategy": TWO, **fields})


def still(message, context, host):
    """A silo that learns nothing."""
    arrays = message.content.array_records.get("arrays")
    return honest_reply(message, context, host, arrays=arrays)


def rounds_of(ran, kind="train"):
    """The arrays that the silos got, all the same ones, by round."""
    return {
        m.content["config"]["split.round"]: m.content["arrays"]
        for m in ran.seen
        if m.metadata.message_type == kind
    }


def test_updates_are_clipped_by_their_common_norm_and_weigh_the_same(toy, values):
    """Though the silos have 1, 2 and 3 examples."""

    def reply(message, context, host):
        if message.metadata.message_type != "train":
            return honest_reply(message, context, host)
        gain = np.float32(context.node_config["partition-id"])
        sent = message.content["arrays"].items()
        own = ArrayRecord({k: Array(v.numpy() + gain) for k, v in sent})
        return honest_reply(message, context, host, arrays=own)

    clip = UPDATE / 10
    ran = toy(private(UNSEEN, clip), config=config(num_server_rounds=1), reply=reply)
    found = values(ran.result.arrays)
    own, trunk = 0.0, 0.0
    for gain in range(SILOS):
        norm = math.sqrt(7 * gain**2 + 7 * 100)
        own += gain * clip / norm / SILOS
        trunk += 10 * clip / norm / SILOS
    assert found["bottom.A"] == pytest.approx(own, rel=1e-5)
    assert found["trunk.A"] == pytest.approx(trunk, rel=1e-5)
    assert ran.result.train_metrics_clientapp[1]["train-loss"] == 0.5
    assert {r.metrics["num-examples"] for r in ran.result.of("train", 1)} == {1, 2, 3}


def test_short_updates_stay_as_they_are(toy, values):
    ran = toy(private(UNSEEN, 2 * UPDATE), config=config())
    assert values(ran.result.arrays)["bottom.A"] == pytest.approx(2.0, rel=1e-5)
    assert values(ran.result.arrays)["trunk.B"] == pytest.approx(20.0, rel=1e-5)


def test_a_silo_that_fails_is_an_update_of_zero(toy, values):
    def reply(message, context, host):
        if context.node_config["partition-id"] == 1:
            raise ValueError("gone")
        return honest_reply(message, context, host)

    inner = private(UNSEEN, 2 * UPDATE)
    ran = toy(inner, config=config(num_server_rounds=1), reply=reply)
    assert values(ran.result.arrays)["top.A"] == pytest.approx(2 / 3, rel=1e-5)
    assert inner.releases == 1


@pytest.mark.medium
def test_the_noise_is_there(toy):
    """14 elements in 150 rounds: six standard errors of mean and deviation."""
    inner = private(noise=1.5, clip=2.0)
    ran = toy(inner, config=config(num_server_rounds=150), host=ToyHost(gain=0.0), reply=still)
    held = [
        np.concatenate([a.numpy().ravel() for a in arrays.values()])
        for _, arrays in sorted(rounds_of(ran).items())
    ]
    whole = [
        np.concatenate([t.numpy().ravel() for t in ran.result.adapter.values()]),
    ]
    steps = np.diff(np.stack(held), axis=0).ravel()  # of the silo's own elements
    deviation = 1.5 * 2.0 / SILOS
    assert len(whole[0]) == 14 and len(steps) > 1000
    assert abs(steps.mean()) < 6 * deviation / math.sqrt(len(steps))
    assert abs(steps.std() / deviation - 1) < 6 / math.sqrt(2 * len(steps))
    assert inner.releases == 150


def test_epsilon_is_that_of_all_rounds_for_one_silo_replaced(toy):
    inner = private(noise=4.0, delta=1e-6)
    assert inner.epsilon() == 0.0
    toy(inner, config=config(num_server_rounds=3))
    expected = Gaussians().released(sensitivity=2.0, deviation=4.0, times=3)
    assert inner.epsilon() == expected.epsilon(1e-6) > 0


def test_the_run_ends_before_it_goes_beyond_max_epsilon(toy, caplog):
    caplog.set_level(logging.INFO)
    most = Gaussians().released(sensitivity=2.0, deviation=4.0, times=2).epsilon(1e-5) * 1.01
    inner = private(noise=4.0, max_epsilon=most)
    ran = toy(inner, config=config(num_server_rounds=9))
    assert ran.result.last_round == inner.releases == 2
    assert inner.epsilon() <= most
    assert "stopping before round 3: ε is" in caplog.text
    with pytest.raises(ConfigError, match=r"dp-max-epsilon is 0\.1, and the first round has ε = "):
        toy(private(noise=4.0, max_epsilon=0.1), config=config())


@pytest.mark.medium
def test_a_resumed_run_counts_on_and_publishes_no_round_twice(toy, tmp_path):
    def dies(server_round, kind):
        def reply(message, context, host):
            told = message.content["config"]["split.round"], message.metadata.message_type
            if told == (server_round, kind):
                raise Killed
            return honest_reply(message, context, host)

        return reply

    cut = config(output_dir=str(tmp_path), num_server_rounds=3)
    with pytest.raises(Killed):
        toy(private(), config=cut, reply=dies(2, "evaluate"))
    published = rounds_of(toy.last, "evaluate")[2]
    with pytest.raises(Killed):
        toy(private(), config=replace(cut, resume=True), reply=dies(3, "train"))
    again = rounds_of(toy.last, "evaluate")[2]
    for name, array in published.items():
        assert array.numpy().tobytes() == again[name].numpy().tobytes()
    inner = private()
    ran = toy(inner, config=replace(cut, resume=True))
    assert inner.releases == 3 and {*rounds_of(ran)} == {3}


def test_a_resumed_round_gets_other_noise(toy, tmp_path):
    """Flower's own wrapper draws from numpy's generator, which a checkpoint brings back."""

    def dies(message, context, host):
        if message.content["config"]["split.round"] == 2:
            raise Killed
        return still(message, context, host)

    found = []
    for name in ("one", "other"):
        cut = config(output_dir=str(tmp_path / name))
        np.random.seed(7)
        with pytest.raises(Killed):
            toy(private(), config=cut, reply=dies)
        resumed = toy(private(), config=replace(cut, resume=True), host=ToyHost(0.0), reply=still)
        found.append(resumed.result.arrays["bottom.A"].numpy())
    assert not np.array_equal(*found)


@pytest.mark.medium
def test_nothing_is_published_that_a_resumed_run_would_not_count(toy, tmp_path):
    with small_disk(tmp_path / "disk") as disk:

        def reply(message, context, host):
            if message.content["config"]["split.round"] == 2:
                fill(disk)
            return honest_reply(message, context, host)

        with pytest.raises(StateError, match=r"round 2 is not saved.*make room in output-dir"):
            toy(private(), config=config(output_dir=str(disk / "run")), reply=reply)
        before = rounds_of(toy.last)[2]
        for name, array in before.items():
            assert np.array_equal(toy.last.strategy.result.arrays[name].numpy(), array.numpy())
        assert not [m for m in toy.last.seen if m.metadata.message_type == "evaluate"][3:]


def test_one_silo_is_refused(toy):
    inner = CentralPrivacy(FedAvg(min_available_nodes=1, min_train_nodes=1), noise=1.0, clip=1.0)
    with pytest.raises(RoundError, match="one silo is asked to train"):
        toy(inner, config=config(), nodes=1)


@pytest.mark.parametrize("inner", [FedAdam, FedMedian, FedAvgLoRA])
def test_strategies_that_do_not_average_are_refused(inner):
    with pytest.raises(ConfigError, match=rf"{inner.__name__} makes something else of them"):
        CentralPrivacy(inner(), noise=1.0, clip=1.0)


def test_strategies_by_name():
    for name in INNER_STRATEGIES:
        settings = StrategyConfig(name=name, dp_noise=1.0, dp_clip=0.5)
        told = inner_problems(settings)
        refused = any("central differential privacy" in one for one in told)
        assert refused != (name in ("fedavg", "fedprox")) or "missing" in str(told), name
    options = {"proximal_mu": 0.1}
    built = build_inner(StrategyConfig(name="fedprox", dp_noise=2.0, dp_clip=0.5, options=options))
    wrapper = central_privacy(built)
    assert wrapper is not None and isinstance(wrapper.strategy, FedProx)
    assert (wrapper.noise_multiplier, wrapper.clipping_norm) == (2.0, 0.5)
    assert central_privacy(FedAvg()) is None


KEYS = {"model.name": "m", "strategy.dp-noise": 1.0, "strategy.dp-clip": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy.dp-clip": 0.0}, "needs both strategy.dp-noise and strategy.dp-clip"),
        ({"strategy.dp-noise": 0.0}, "needs both strategy.dp-noise and strategy.dp-clip"),
        (
            {"strategy.dp-noise": 0.0, "strategy.dp-clip": 0.0, "strategy.dp-max-epsilon": 1.0},
            "strategy.dp-max-epsilon bounds the ε",
        ),
        ({"strategy.personal": "layers.3"}, "strategy.personal keeps modules in the silos"),
        ({"trunk.adapters": "shared"}, "trunk.adapters 'shared' steps while silos train"),
        ({"strategy.filter": "refuse"}, "strategy.filter 'refuse' lets one silo's update"),
        ({"strategy.min-nodes": 1}, "strategy.min-nodes is 1"),
        ({"checkpoint.fallback": True}, "checkpoint.fallback may publish a round again"),
        ({"strategy.name": "fedadam"}, "FedAdam makes something else of them"),
        ({"strategy.dp-delta": 0.0}, "strategy.dp-delta must be a number above 0"),
    ],
)
def test_settings_under_which_it_means_nothing_are_refused(changes, message):
    read_run_config(KEYS, check_strategy=inner_problems)
    with pytest.raises(ConfigError) as caught:
        read_run_config({**KEYS, **changes}, check_strategy=inner_problems)
    assert message in str(caught.value)


def test_a_strategy_of_ones_own_is_held_to_the_same(toy):
    with pytest.raises(ConfigError, match=r"trunk\.adapters 'shared' steps"):
        toy(private(), config=config(trunk=TrunkConfig(adapters="shared")))
    with pytest.raises(ConfigError, match=r"checkpoint\.fallback"):
        toy(private(), config=config(checkpoint=CheckpointConfig(fallback=True)))


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"clip": -1.0}, {"delta": 1.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="must be above 0, delta between 0 and 1"):
        private(**wrong)
