"""The quickstart from start to end: every silo gets better, and all that was promised is left."""

import json
import math
from pathlib import Path

import pytest

from flower_split.apps.simulate import main
from flower_split.quickstart.corpora import SILO_PACKAGES
from flower_split.reporting import RunResult, read_result

ROOT = Path(__file__).parents[2]
# The three share one run, which the first of them waits for.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SILOS = len(SILO_PACKAGES)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    arguments = [str(ROOT / "examples/quickstart"), "--silos", str(SILOS)]
    arguments += ["--output-dir", str(folder), "-c", f"strategy.min-nodes={SILOS}"]
    assert main([*arguments, "-c", "num-server-rounds=2 train.local-steps=12"]) == 0
    return folder


@pytest.fixture(scope="module")
def result(output: Path) -> RunResult:
    return read_result(output / "result.json")


def perplexities(result: RunResult, silo: str, *, alone: bool = False) -> list[float]:
    return [math.exp(loss) for _, loss in result.losses(silo, alone=alone)]


def test_every_silo_gets_better(result: RunResult) -> None:
    assert result.silos == [str(number) for number in range(SILOS)]
    for silo in result.silos:
        before, *_, after = perplexities(result, silo)
        assert after < 0.8 * before, silo
        assert perplexities(result, silo, alone=True)[-1] < before, silo


def test_the_cost_is_reported(result: RunResult) -> None:
    for silo in result.silos:
        assert sum(result.wire_bytes[silo].values()) > 1_000_000
        assert 0.4 < result.parameter_share[silo] < 0.7
    assert set(result.samples) >= {0, 2}
    assert all(result.samples.values())
    assert result.config["train.local-steps"] == 12
    assert {"torch", "flwr"} <= set(result.versions)


def test_the_plot_and_the_adapter_are_left(output: Path) -> None:
    assert (output / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "adapter/adapter_config.json").read_text())["peft_type"] == "LORA"
