"""A run's result as data: its silos, its losses, the versions it ran with."""

import math
from importlib.metadata import version

import pytest

from flower_split.reporting import RoundResult, RunResult, installed_versions


def test_silos_are_sorted_by_number_then_by_name(result: RunResult) -> None:
    assert result.silos == ["0", "1", "10"]
    named = RunResult(
        rounds=[RoundResult(server_round=1, train={"b": {}, "2": {}}, failures={"11": "gone"})],
        wire_bytes={"a": {"h1": 1}},
    )
    assert named.silos == ["2", "11", "a", "b"]


def test_losses_of_one_silo(result: RunResult) -> None:
    assert result.losses("1") == [(0, 3.5), (1, 2.5), (2, 1.5)]
    assert result.losses("1", evaluate=False) == [(1, 2.5), (2, 1.5)]
    assert result.losses("1", alone=True) == [(1, 2.6), (2, 2.1)]
    assert result.losses("nobody") == []


@pytest.mark.parametrize("loss", [math.nan, math.inf, "1.0", [1.0]])
def test_what_is_not_a_finite_loss_is_left_out(loss: float | str | list[float]) -> None:
    result = RunResult(rounds=[RoundResult(server_round=1, evaluate={"0": {"eval-loss": loss}})])
    assert result.losses("0") == []


def test_installed_versions_name_what_computed() -> None:
    found = installed_versions()
    assert found["torch"] == version("torch") and found["flwr"] == version("flwr")
    assert found["python"].startswith("3.")
