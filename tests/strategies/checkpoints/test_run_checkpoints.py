"""A toy run that stops and is resumed: what goes on, what is refused, what is kept."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg
from small_disk import fill, small_disk
from toy_trunk import honest_reply, toy_config

from flower_split.checkpoint import CheckpointStore, find_checkpoint
from flower_split.config.resuming import MAY_CHANGE, differences, settings
from flower_split.config.run_config import run_keys
from flower_split.config.sections import (
    CheckpointConfig,
    EarlyStopConfig,
    PeftSettings,
    StrategyConfig,
    TrainConfig,
)
from flower_split.errors import ConfigError, DamagedStateError, StateError
from flower_split.strategies.checkpoints.run_state import read_result, read_state
from flower_split.strategies.early_stopping import best_round, rounds_without_progress


class Killed(BaseException):
    """In place of a signal."""


def killed_in(server_round, purpose="train"):
    def reply(message, context, host):
        config = message.content["config"]
        if (config["split.round"], message.metadata.message_type) == (server_round, purpose):
            raise Killed
        return honest_reply(message, context, host)

    return reply


def losing(losses):
    """Silos whose held-out loss is what `losses` says of the round."""

    def reply(message, context, host):
        metrics = None
        if message.metadata.message_type == "evaluate":
            metrics = {
                "num-examples": 1,
                "eval-loss": losses[message.content["config"]["split.round"]],
            }
        return honest_reply(message, context, host, metrics=metrics)

    return reply


def config(output, **fields):
    defaults = {"output_dir": str(output), "num_server_rounds": 4, "evaluate_initial": True}
    return toy_config(**{**defaults, **fields})


def same(one, other):
    assert list(one.arrays) == list(other.arrays)
    for name, array in one.arrays.items():
        assert array.numpy().dtype == other.arrays[name].numpy().dtype
        assert array.numpy().tobytes() == other.arrays[name].numpy().tobytes()
    assert one.history == other.history
    assert one.train_metrics_clientapp == other.train_metrics_clientapp
    assert one.evaluate_metrics_clientapp == other.evaluate_metrics_clientapp


def folders(output):
    return sorted(p.name for p in (output / "checkpoints").iterdir() if p.name != ".lock")


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("purpose", ["train", "evaluate"])
@pytest.mark.parametrize("server_round", [1, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(toy, tmp_path, server_round, purpose, caplog):
    caplog.set_level(logging.INFO)
    wanted = toy(FedAdam(), config=config(tmp_path / "whole")).result
    cut = config(tmp_path / "cut")
    with pytest.raises(Killed):
        toy(FedAdam(), config=cut, reply=killed_in(server_round, purpose))
    resumed = toy(FedAdam(), config=replace(cut, resume=True))
    same(resumed.result, wanted)
    rounds = [m.content["config"]["split.round"] for m in resumed.seen]
    assert min(rounds) == server_round
    trained_again = any(m.metadata.message_type == "train" for m in resumed.seen)
    assert trained_again == ((server_round, purpose) != (4, "evaluate"))
    assert folders(tmp_path / "cut") == ["round-00003", "round-00004"]
    assert "the run goes on after round" in caplog.text


@pytest.mark.medium
def test_a_run_that_ended_is_complete_when_it_is_resumed_and_may_be_made_longer(toy, tmp_path):
    wanted = toy(FedAvg(), config=config(tmp_path)).result
    again = toy(FedAvg(), config=config(tmp_path, resume=True))
    assert again.seen == []
    same(again.result, wanted)
    longer = toy(FedAvg(), config=config(tmp_path, resume=True, num_server_rounds=5))
    assert {m.content["config"]["split.round"] for m in longer.seen} == {5}
    assert longer.result.last_round == 5


def test_with_nothing_to_resume_the_run_starts_anew(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert toy(FedAvg(), config=config(tmp_path, resume=True)).result.last_round == 4
    assert "nothing to resume in" in caplog.text


def test_without_resume_an_earlier_runs_checkpoints_are_set_aside(toy, tmp_path, caplog):
    toy(FedAvg(), config=config(tmp_path))
    ran = toy(FedAvg(), config=config(tmp_path, num_server_rounds=2))
    assert ran.result.last_round == 2
    assert folders(tmp_path) == ["previous", "round-00001", "round-00002"]
    assert "checkpoints of an earlier run" in caplog.text


@pytest.mark.medium
def test_row_28_a_damaged_checkpoint_costs_a_round_and_no_exactness(toy, tmp_path, caplog):
    wanted = toy(FedAdam(), config=config(tmp_path / "whole")).result
    with pytest.raises(Killed):
        toy(FedAdam(), config=config(tmp_path), reply=killed_in(4))
    damaged = tmp_path / "checkpoints" / "round-00003" / "arrays.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DamagedStateError, match=f"{damaged} is damaged.*checkpoint.fallback"):
        toy(FedAdam(), config=config(tmp_path, resume=True))
    flag = CheckpointConfig(fallback=True)
    resumed = toy(FedAdam(), config=config(tmp_path, resume=True, checkpoint=flag))
    assert {m.content["config"]["split.round"] for m in resumed.seen} == {3, 4}
    assert str(damaged) in caplog.text
    same(resumed.result, wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 3}, "seed was 0 and is 3 now"),
        ({"train": TrainConfig(learning_rate=0.5)}, "train.learning-rate was 0.001 and is 0.5 now"),
        ({"strategy": StrategyConfig(min_nodes=1, options={"eta": 2})}, "strategy.eta was None"),
        ({"num_server_rounds": 3}, "the checkpoint is of round 4, and num-server-rounds is 3"),
    ],
)
def test_a_run_with_other_settings_is_refused_by_naming_them(toy, tmp_path, changes, said):
    toy(FedAvg(), config=config(tmp_path))
    before = folders(tmp_path)
    with pytest.raises(StateError) as caught:
        toy(FedAvg(), config=config(tmp_path, resume=True, **changes))
    assert said in str(caught.value)
    assert folders(tmp_path) == before


def test_another_strategy_is_refused(toy, tmp_path):
    toy(FedAvg(), config=config(tmp_path))
    with pytest.raises(StateError, match=r"FedAvg when the state was saved, and is .*FedAdam now"):
        toy(FedAdam(), config=config(tmp_path, resume=True))


def test_what_may_change_takes_effect(toy, tmp_path):
    toy(FedAvg(min_available_nodes=3), config=config(tmp_path))
    strategy = StrategyConfig(min_nodes=2)
    inner = FedAvg(min_available_nodes=2)
    changed = config(
        tmp_path, resume=True, num_server_rounds=5, round_timeout=2.0, strategy=strategy
    )
    assert toy(inner, config=changed).result.last_round == 5
    assert inner.min_available_nodes == 2


def test_every_key_that_may_change_is_a_key():
    assert set(MAY_CHANGE) <= run_keys().keys()
    other = toy_config(peft=PeftSettings(type="vera", options={"r": 8}))
    assert settings(other).keys() == run_keys().keys() | {"peft.r"}
    # Plain LoRA is written as it was before there was another method.
    assert settings(toy_config()).keys() == run_keys().keys() - {"peft.type"}
    assert differences(settings(toy_config()), settings(toy_config())) == []
    assert differences({}, {"peft.type": "LORA"}) == []
    data = {name: value for name, value in settings(toy_config()).items() if "data." in name}
    of_before = {"data.path", "data.text", "data.prompt", "data.max-examples"}
    assert differences({name: data[name] for name in of_before}, data) == []
    assert len(differences(settings(toy_config()), settings(other))) == 2
    assert differences({}, {"seed": 0, "lora.target-modules": "all-linear"}) == []


@pytest.mark.medium
def test_row_27_a_full_disk_costs_the_checkpoint_and_no_round(toy, tmp_path, monkeypatch, caplog):
    wanted = toy(FedAvg(), config=config(tmp_path / "whole")).result

    def full(checkpoint, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flower_split.checkpoint.store.write_checkpoint", full)
    same(toy(FedAvg(), config=config(tmp_path / "full")).result, wanted)
    assert caplog.text.count("No space left on device") == 6
    assert folders(tmp_path / "full") == []


@pytest.mark.medium
def test_a_disk_that_is_full_for_a_while_costs_no_round_and_no_exactness(toy, tmp_path, caplog):
    """Full from the second round on, at which the run is killed two rounds later, and resumed."""
    wanted = toy(FedAdam(), config=config(tmp_path / "whole")).result
    with small_disk(tmp_path / "disk") as disk:
        cut = config(disk / "run")

        def reply(message, context, host):
            server_round = message.content["config"]["split.round"]
            if server_round == 2:
                fill(disk)
            if server_round == 4:
                raise Killed
            return honest_reply(message, context, host)

        with pytest.raises(Killed):
            toy(FedAdam(), config=cut, reply=reply)
        assert folders(disk / "run") == ["round-00000", "round-00001"]
        assert caplog.text.count("No space left on device") == 2
        (disk / "filler").unlink()
        resumed = toy(FedAdam(), config=replace(cut, resume=True))
        same(resumed.result, wanted)
        assert min(m.content["config"]["split.round"] for m in resumed.seen) == 2
        assert folders(disk / "run") == ["round-00003", "round-00004"]


def test_what_a_strategy_makes_on_its_way_and_cannot_be_kept_costs_the_checkpoint(
    toy, tmp_path, caplog
):
    class Later(FedAvg):
        def aggregate_train(self, server_round, replies):
            self.steps = iter([server_round])
            return super().aggregate_train(server_round, replies)

    assert toy(Later(), config=config(tmp_path)).result.last_round == 4
    assert "round 2 is not saved, because Later cannot be kept" in caplog.text
    assert "- steps is a builtins:list_iterator" in caplog.text
    assert folders(tmp_path) == ["round-00000"]


def test_two_runs_at_once_are_refused(toy, tmp_path):
    with (
        CheckpointStore(tmp_path / "checkpoints"),
        pytest.raises(StateError, match="another run writes checkpoints"),
    ):
        toy(FedAvg(), config=config(tmp_path))


@pytest.mark.medium
def test_no_checkpoints_are_written_where_none_are_wanted(toy, tmp_path):
    toy(FedAvg(), config=config(tmp_path, checkpoint=CheckpointConfig(keep=0)))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.medium
def test_silos_may_drop_their_states_only_after_the_last_training_is_saved(toy, tmp_path):
    def told(ran):
        return [
            (m.metadata.message_type, m.content["config"]["split.round"])
            for m in ran.seen
            if m.content["config"]["split.last-training"]
        ]

    assert set(told(toy(FedAvg(), config=config(tmp_path)))) == {("evaluate", 4)}
    without = toy_config(num_server_rounds=4)
    assert set(told(toy(FedAvg(), config=without))) == {("train", 4), ("evaluate", 4)}


LOSSES = [5.0, 3.0, 1.0, 2.0, 1.5, 0.9]


@pytest.mark.medium
def test_the_best_round_is_kept(toy, tmp_path):
    kept = config(
        tmp_path,
        num_server_rounds=4,
        checkpoint=CheckpointConfig(keep=1, keep_best=True),
    )
    toy(FedAvg(), config=kept, reply=losing(LOSSES))
    assert folders(tmp_path) == ["round-00002", "round-00004"]
    best = find_checkpoint(tmp_path / "checkpoints", best=True)
    assert best.server_round == 2
    assert read_result(best).evaluate_metrics_clientapp[2]["eval-loss"] == 1.0


def test_the_run_stops_without_progress_and_goes_on_with_more_patience(toy, tmp_path):
    stop = config(tmp_path, num_server_rounds=5, early_stop=EarlyStopConfig(patience=2))
    ran = toy(FedAvg(), config=stop, reply=losing(LOSSES))
    assert ran.result.last_round == 4
    again = toy(FedAvg(), config=replace(stop, resume=True), reply=losing(LOSSES))
    assert again.seen == []
    patient = replace(stop, resume=True, early_stop=EarlyStopConfig(patience=3))
    assert toy(FedAvg(), config=patient, reply=losing(LOSSES)).result.last_round == 5


def test_a_run_that_should_stop_stops_where_it_did_when_it_is_resumed(toy, tmp_path):
    asked = []

    def should_stop(server_round, result):
        asked.append(server_round)
        return server_round == 2

    stopped = toy(FedAvg(), config=config(tmp_path), should_stop=should_stop)
    assert (stopped.result.last_round, asked) == (2, [1, 2])
    resumed = config(tmp_path, resume=True)
    again = toy(FedAvg(), config=resumed, should_stop=should_stop)
    assert (again.seen, asked) == ([], [1, 2, 2])
    same(again.result, stopped.result)
    assert toy(FedAvg(), config=resumed).result.last_round == 4


@pytest.mark.parametrize(
    ("fields", "best", "waited"),
    [
        ({}, 5, 0),
        ({"best_is": "highest"}, 1, 5),
        ({"early_stop": EarlyStopConfig(patience=9, min_delta=1.0)}, 5, 3),
    ],
)
def test_the_best_round_and_the_rounds_without_progress(fields, best, waited):
    evaluations = {n: MetricRecord({"eval-loss": loss}) for n, loss in enumerate(LOSSES)}
    settled = toy_config(**fields)
    assert best_round(settled, evaluations) == best
    assert rounds_without_progress(settled, evaluations) == waited


def test_a_metric_that_nobody_reports_is_named_after_the_first_evaluation(toy, tmp_path):
    wrong = config(tmp_path, best_metric="los", checkpoint=CheckpointConfig(keep_best=True))
    with pytest.raises(ConfigError, match=r"'los' is not among .* gives: eval-loss"):
        toy(FedAvg(), config=wrong)


def test_a_checkpoint_holds_no_token_and_no_pickle(toy, tmp_path):
    ran = toy(FedAvg(), config=config(tmp_path))
    files = [p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]
    assert not any(token.encode() in data for token in ran.host.tokens for data in files)
    last = find_checkpoint(tmp_path / "checkpoints")
    state = read_state(last)
    assert state.num_rounds == 4
    assert json.dumps(last.state)
    assert all(isinstance(array, np.ndarray) for array in last.arrays.values())


def test_the_silos_of_a_round_are_a_function_of_the_seed(toy):
    def asked(**changes):
        ran = toy(
            FedAvg(fraction_train=0.5, fraction_evaluate=0.5), nodes=6, config=toy_config(**changes)
        )
        return [
            (m.content["config"]["split.round"], m.metadata.dst_node_id)
            for m in ran.seen
            if "config" in m.content
        ]

    assert asked() == asked()
    assert asked(seed=1) != asked(seed=2)
