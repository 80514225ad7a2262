"""What a tracker is told of a run, through accelerate's own integration."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.logging import get_logger

from flower_split.errors import ConfigError
from flower_split.reporting import RunResult
from flower_split.reporting.trackers import PROJECT, Trackers


class Recorder(tracking.GeneralTracker):
    name = "recorder"
    requires_logging_directory = False

    def __init__(self, run_name: str) -> None:
        self.told: list[Any] = [run_name]
        self.fails = False
        made.append(self)

    @property
    def tracker(self) -> object:
        return self

    def start(self) -> None:
        get_logger(__name__).debug("as accelerate's own do")
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log(self, values: dict[str, float], step: int | None, **kwargs: Any) -> None:
        if self.fails:
            raise RuntimeError("no line\nto the server")
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finish")


made: list[Recorder] = []


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)


def test_it_is_told_settings_rounds_and_the_end(result: RunResult) -> None:
    with Trackers(["recorder"], {"lora.r": 8, "lora.target-modules": ("q", "v")}) as trackers:
        for one in result.rounds:
            trackers.write(replace(one, train_counters={"1": {"bytes-h1": 64}}))
    (recorder,) = made
    project, start, settings, *rounds, finish = recorder.told
    assert (project, start, finish) == (PROJECT, "start", "finish")
    assert settings == {"lora.r": 8, "lora.target-modules": "('q', 'v')"}
    assert [step for step, _ in rounds] == [0, 1, 2]
    assert rounds[1][1]["silo-1/train/train-loss"] == 2.5
    assert rounds[1][1]["silo-1/train-counters/bytes-h1"] == 64
    assert rounds[0][1]["round/silos-that-failed"] == 0


def test_one_that_fails_is_left_out_and_ends_no_run(
    result: RunResult, caplog: pytest.LogCaptureFixture
) -> None:
    with Trackers(["recorder"], {}) as trackers, caplog.at_level(logging.WARNING):
        trackers.write(result.rounds[0])
        made[0].fails = True
        for one in result.rounds[1:]:
            trackers.write(one)
    assert [r.getMessage() for r in caplog.records] == [
        "recorder is told nothing from round 1 on: RuntimeError: no line"
    ]


def test_one_that_is_unknown_is_said_and_the_others_are_ended() -> None:
    with pytest.raises(ConfigError, match=r"trackers has 'none'.*mlflow.*wandb"):
        Trackers(["recorder", "none"], {}).__enter__()
    assert made[0].told[-1] == "finish"


def test_one_whose_package_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Recorder) -> None:
        raise ModuleNotFoundError("No module named 'recorder'")

    monkeypatch.setattr(Recorder, "start", start)
    with pytest.raises(ConfigError, match="pip install recorder, or leave recorder out"):
        Trackers(["recorder"], {}).__enter__()


def test_accelerates_tensorboard_is_no_tracker_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set tensorboard to true"):
        Trackers(["tensorboard"], {}).__enter__()
