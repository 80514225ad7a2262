"""Runs whose trunk is on Ray: equal to a run in one process, also where a stage ends in it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from federation import write_app
from ray_trunks import gone, ray_processes
from split_run import failed_rounds, run_split
from steps import KEEPING, run_config, steps_of
from tiny_checkpoint import save_tiny_model, save_tiny_run, tiny_run_config

from flower_split.apps.simulate import simulate

pytestmark = pytest.mark.slow
SILOS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def left(
    folder: Path, *, steps: Callable[..., Any] = steps_of, **changes: Any
) -> dict[str, torch.Tensor]:
    """The adapter that a run of three rounds yields, in which no silo fails."""
    values = run_config(folder, **{**KEEPING, "strategy.min-nodes": SILOS, **changes})
    result, _ = run_split(values, silos=SILOS, steps=steps)
    assert not failed_rounds(result)
    assert result.last_round == 3
    return dict(result.adapter)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_a_run_on_two_stages_that_loses_one_equals_one_that_does_not(folder: Path) -> None:
    before = {process.pid for process in ray_processes()}
    started, killed = list[psutil.Process](), list[int]()

    def steps(partition: int, server_round: int) -> Any:
        if server_round == 2 and not killed:
            started.extend(one for one in ray_processes() if one.pid not in before)
            stages = [one for one in started if "ray::StageActor" in " ".join(one.cmdline())]
            killed.extend(one.pid for one in stages)
            assert len(killed) == 2
            os.kill(killed[-1], signal.SIGKILL)
        return steps_of(partition, server_round)

    ours = left(folder, steps=steps, **{"trunk.engine": "ray", "trunk.stages": 2})
    assert killed
    assert gone(started)
    assert_equal(ours, left(folder))


@pytest.mark.exhaustive
def test_a_run_on_two_replicas_equals_one_in_one_process(folder: Path) -> None:
    frozen = {"trunk.adapters": "frozen", "model.delivery": "server"}
    ours = left(folder, **{"trunk.engine": "ray", "trunk.replicas": 2}, **frozen)
    assert_equal(ours, left(folder, **frozen))


@pytest.mark.exhaustive
def test_a_simulated_run_places_its_stages_beside_the_silos(tmp_path: Path) -> None:
    """All of whose cluster's CPUs are the silos'."""
    tiny = save_tiny_run(tmp_path)
    settings = {"strategy.min-nodes": SILOS, "num-server-rounds": 1, "lora.dropout": 0.2}
    app = write_app(tmp_path / "app", tiny_run_config(tiny, **settings))
    adapters = []
    for name, given in (("ray", "trunk.engine='ray' trunk.stages=2"), ("local", "")):
        output = tmp_path / name
        simulate(app, silos=SILOS, output_dir=output, run_config=[given] if given else [])
        adapters.append((output / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
