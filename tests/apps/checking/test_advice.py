"""Settings of a toy are named where they meet a real model, and only there."""

from dataclasses import replace

import pytest
from toy_trunk import toy_config

from flower_split.apps.checking.advice import REAL, advice, in_parameters
from flower_split.config.sections import DataConfig, SplitConfig, TrainConfig

REASONABLE = TrainConfig(learning_rate=2e-4, max_length=512)


def config(train: TrainConfig = REASONABLE, **more: object) -> SplitConfig:
    return replace(toy_config(), train=train, data=DataConfig(path="x"), **more)  # type: ignore[arg-type]


def test_a_toy_may_have_a_toys_settings() -> None:
    toy = replace(REASONABLE, learning_rate=1e-2, local_steps=10, max_length=128)
    assert advice(config(toy), REAL - 1) == []
    assert len(advice(config(toy), 600_000_000)) == 3


def test_usual_settings_are_passed() -> None:
    assert advice(config(), 600_000_000) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e-2}, "train.learning-rate 0.01 is a toy's: a model of 0.6 B"),
        ({"learning_rate": 1e-5}, "adapters usually take 1e-4"),
        ({"local_steps": 10}, "are 30 steps in all"),
        ({"max_length": 128}, "train.max-length 128 cuts most texts off"),
    ],
)
def test_every_setting_is_named_with_what_is_usual(changes: dict[str, float], said: str) -> None:
    (one,) = advice(config(replace(REASONABLE, **changes), num_server_rounds=3), 600_000_000)  # type: ignore[arg-type]
    assert said in one


def test_few_examples_are_named() -> None:
    few = replace(config(), data=DataConfig(path="x", max_examples=120))
    assert ["data.max-examples 120" in one for one in advice(few, REAL)] == [True]


def test_numbers_of_parameters() -> None:
    assert [in_parameters(n) for n in (12, 1_700_000, 596_000_000, 7_240_000_000)] == [
        "12",
        "1.7 M",
        "0.6 B",
        "7.2 B",
    ]
