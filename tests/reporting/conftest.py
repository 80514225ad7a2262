"""A small run's result, made by hand."""

import pytest

from flower_split.reporting import RoundResult, RunResult


def one_round(server_round: int, loss: float, gap: float = 0.0) -> RoundResult:
    silos = {"0": loss, "1": loss + 0.5, "10": loss + 1.0}
    trained = {silo: {"train-loss": value, "num-examples": 12} for silo, value in silos.items()}
    return RoundResult(
        server_round=server_round,
        train=trained if server_round else {},
        evaluate={silo: {"eval-loss": value + gap} for silo, value in silos.items()},
        aggregated={"eval-loss": loss + 0.5},
        seconds=1.5,
    )


@pytest.fixture
def result() -> RunResult:
    return RunResult(
        rounds=(one_round(0, 3.0), one_round(1, 2.0), one_round(2, 1.0)),
        alone=(one_round(1, 2.0, gap=0.1), one_round(2, 1.5, gap=0.1)),
        wire_bytes={silo: {"h1": 1_500_000, "g1": 1_000_000} for silo in ("0", "1", "10")},
        parameter_share={"0": 0.375, "1": 0.375, "10": 0.375},
        samples={0: "Return the [bold]", 2: "Return the mean of an array."},
        config={"model.name": "m", "lora.r": 8, "train.learning-rate": 1e-3},
        versions={"python": "3.11"},
        seconds=12.25,
    )
