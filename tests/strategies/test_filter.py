"""Runs with a hostile silo: what the filter refuses, lowers and leaves as it is."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg
from in_process_grid import FIRST_NODE
from toy_trunk import ToyHost, honest_reply, toy_config

from flower_split.config.sections import StrategyConfig
from flower_split.errors import RoundError
from flower_split.strategies import Alone

INNERS = {
    "fedavg": FedAvg,
    "fedadam": FedAdam,
    "fedavgm": FedAvgM,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
}
HOSTILE = 1


def filtered(mode="refuse", **fields):
    return toy_config(
        num_server_rounds=3,
        strategy=StrategyConfig(min_nodes=1, fraction_evaluate=0.0, filter=mode, **fields),
    )


def hostile(message, context, host, *, times=1000.0, examples=None, failing=False):
    """Honest silos, but one whose update is `times` as large, or which fails."""
    if context.node_config["partition-id"] != HOSTILE:
        return honest_reply(message, context, host)
    if failing:
        raise OSError("no disk")
    arrays = ArrayRecord(
        {k: Array(v.numpy() + np.float32(times)) for k, v in message.content["arrays"].items()}
    )
    metrics = None if examples is None else {"num-examples": examples, "train-loss": 0.5}
    return honest_reply(message, context, host, arrays=arrays, metrics=metrics)


def bytes_of(ran):
    return {name: array.numpy().tobytes() for name, array in ran.result.arrays.items()}


def failures(ran):
    return [(r.server_round, r.silo, r.failure) for r in ran.result.history if r.failure]


@pytest.mark.parametrize("name", INNERS)
def test_an_honest_run_is_the_same_to_the_bit_with_the_filter(toy, name):
    inner = INNERS[name]
    plain = toy(inner(fraction_evaluate=0.0), config=filtered("off"))
    for mode in ("warn", "refuse"):
        ran = toy(inner(fraction_evaluate=0.0), config=filtered(mode))
        assert bytes_of(ran) == bytes_of(plain)
        assert ran.result.history == plain.result.history


@pytest.mark.parametrize("name", INNERS)
def test_a_refused_update_is_as_if_the_silo_had_failed(toy, name, caplog):
    inner = INNERS[name]

    def failing(*arguments):
        return hostile(*arguments, failing=True)

    without = toy(inner(fraction_evaluate=0.0), config=filtered("off"), reply=failing)
    with_it = toy(inner(fraction_evaluate=0.0), config=filtered("off"), reply=hostile)
    if name not in ("fedmedian", "fedtrimmedavg"):  # which one silo of three cannot move
        assert bytes_of(with_it) != bytes_of(without)
    ran = toy(inner(fraction_evaluate=0.0), config=filtered(filter_share=1.0), reply=hostile)
    assert bytes_of(ran) == bytes_of(without)
    told = failures(ran)
    assert [(number, silo) for number, silo, _ in told] == [(1, "1"), (2, "1"), (3, "1")]
    assert all("times the round's median" in reason for *_, reason in told)
    assert "silo 1: no reply that counts: the norm of its update is" in caplog.text


def test_a_refused_silo_s_session_leaves_nothing(toy):
    ran = toy(FedAvg(fraction_evaluate=0.0), config=filtered(), reply=hostile)
    assert FIRST_NODE + HOSTILE not in {node for _, node in ran.host.accepted}
    assert len(ran.host.accepted) == 6


def test_a_trunk_s_part_that_moved_too_far_is_refused_too(toy):
    class Pushed(ToyHost):
        def trained(self, token, tensors):
            gain = 1e6 if self.nodes[token] == FIRST_NODE + HOSTILE else self.gain
            return {name: tensor + gain for name, tensor in tensors.items()}

    ran = toy(FedAvg(fraction_evaluate=0.0), config=filtered(), host=Pushed())
    assert {silo for _, silo, _ in failures(ran)} == {"1"}


def test_warn_only_logs(toy, caplog):
    plain = toy(FedAvg(fraction_evaluate=0.0), config=filtered("off"), reply=hostile)
    assert "strategy.filter" not in caplog.text
    ran = toy(FedAvg(fraction_evaluate=0.0), config=filtered("warn"), reply=hostile)
    assert bytes_of(ran) == bytes_of(plain)
    assert failures(ran) == []
    assert "1 would not count, were strategy.filter 'refuse': the norm of its update" in caplog.text
    assert "2 would count, were strategy.filter 'refuse', with num-examples 1 in place of 3" in (
        caplog.text
    )


def test_a_silo_s_weight_is_capped_and_told(toy, values, caplog):
    """The silos have 1, 1e6 and 3 examples: with half of the weight the second has 4."""

    def reply(*arguments):
        return hostile(*arguments, times=5.0, examples=10**6)

    ran = toy(FedAvg(fraction_evaluate=0.0), config=filtered(), reply=reply, num_rounds=1)
    assert values(ran.result.arrays)["top.A"] == (1 * 1 + 4 * 5 + 3 * 1) / 8
    assert failures(ran) == []
    assert "1 counts with num-examples 4 in place of 1000000: strategy.filter-share is 0.5" in (
        caplog.text
    )
    told = {r.silo: r.metrics["num-examples"] for r in ran.result.history}
    assert told == {"0": 1, "1": 10**6, "2": 3}


def test_the_weights_of_evaluations_are_capped_too(toy):
    def reply(message, context, host):
        if (
            context.node_config["partition-id"] != HOSTILE
            or message.metadata.message_type == "train"
        ):
            return honest_reply(message, context, host)
        return honest_reply(
            message, context, host, metrics={"num-examples": 10**6, "eval-loss": 1.25}
        )

    config = replace(filtered(), strategy=StrategyConfig(min_nodes=1, filter="refuse"))
    ran = toy(FedAvg(), config=config, reply=reply, num_rounds=1)
    assert ran.result.evaluate_metrics_clientapp[1]["eval-loss"] == 0.5 * 0.25 + 0.5 * 1.25


def test_the_quorum_is_of_what_the_filter_leaves(toy):
    strategy = StrategyConfig(min_nodes=3, min_replies=3, filter="refuse", fraction_evaluate=0.0)
    with pytest.raises(RoundError) as caught:
        toy(FedAvg(fraction_evaluate=0.0), config=toy_config(strategy=strategy), reply=hostile)
    said = str(caught.value)
    assert "training counts of 2 of 3 silos, and strategy.min-replies is 3" in said
    assert "silo 1: the norm of its update is" in said


def test_two_silos_are_not_compared_and_that_is_logged(toy, caplog):
    ran = toy(FedAvg(fraction_evaluate=0.0), config=filtered(), reply=hostile, nodes=2)
    assert failures(ran) == []
    assert "the norms of every silo's update are not compared: there are 2" in caplog.text


def test_a_silo_is_measured_by_what_it_was_given_itself(toy):
    """`Alone` sends every silo its own arrays: here they are far apart after the first round."""

    def reply(message, context, host):
        side = -1 if context.node_config["partition-id"] == HOSTILE else 1
        gain = np.float32(100.0 if message.content["config"]["split.round"] == 1 else 0.1)
        arrays = ArrayRecord(
            {k: Array(v.numpy() + side * gain) for k, v in message.content["arrays"].items()}
        )
        return honest_reply(message, context, host, arrays=arrays)

    ran = toy(
        Alone(min_nodes=3, fraction_evaluate=0.0),
        config=filtered(filter_norm=2.0),
        host=ToyHost(gain=0.1),
        reply=reply,
    )
    assert failures(ran) == []


@pytest.mark.medium
def test_a_resumed_run_refuses_and_caps_as_the_uninterrupted_one(toy, tmp_path):
    class Killed(BaseException):
        pass

    def reply(message, context, host):
        return hostile(
            message, context, host, times=[3.0, 1000.0, 2.0][rounds_of(message) - 1], examples=900
        )

    def rounds_of(message):
        return message.content["config"]["split.round"]

    def killed(message, context, host):
        if rounds_of(message) == 3:
            raise Killed
        return reply(message, context, host)

    def config(output, **fields):
        return replace(filtered(), output_dir=str(tmp_path / output), **fields)

    inner = INNERS["fedadam"]
    whole = toy(inner(fraction_evaluate=0.0), config=config("whole"), reply=reply)
    assert [number for number, *_ in failures(whole)] == [2]
    with pytest.raises(Killed):
        toy(inner(fraction_evaluate=0.0), config=config("cut"), reply=killed)
    resumed = toy(inner(fraction_evaluate=0.0), config=config("cut", resume=True), reply=reply)
    assert bytes_of(resumed) == bytes_of(whole)
    assert resumed.result.history == whole.result.history
