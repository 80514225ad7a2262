"""Dropout in one process: silos and trunk that compute at once draw numbers of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from in_process_grid import InProcessGrid
from steps import SILOS, run_config
from tiny_checkpoint import save_texts, save_tiny_model

from flower_split.apps.client_app import app
from flower_split.config.run_config import read_run_config
from flower_split.errors import RoundError
from flower_split.strategies import SplitStrategy, build_inner

RUNS: dict[str, dict[str, Any]] = {
    "one trunk": {},
    "stages": {"trunk.devices": "cpu, cpu"},
    "different cuts": {"split.max-bottom-layers": 2, "split.bottoms": "1, 2"},
    "recomputed": {"trunk.recompute": True},
    "a method that draws by itself": {
        "trunk.devices": "cpu, cpu",
        "peft.type": "LOHA",
        "peft.r": 4,
        "peft.rank-dropout": 0.3,
        "peft.target-modules": "q_proj, v_proj",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_texts(made / "texts.jsonl")
    return save_tiny_model(made, "llama", layers=6)


def values_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a run in which several microbatches of every silo are on their way."""
    values = run_config(
        folder,
        **{
            "lora.dropout": 0.3,
            "strategy.name": "fedavg",
            "data.path": str(folder / "texts.jsonl"),
            "data.prompt": "prompt",
            "train.batch-size": 2,
            "train.max-length": 64,
            "train.accumulation": 3,
            "train.keep-optimizer": True,
            **changes,
        },
    )
    is_lora = "peft.type" not in changes
    return {key: value for key, value in values.items() if is_lora or not key.startswith("lora.")}


def ran(values: dict[str, Any], *, threads: int = SILOS) -> dict[str, torch.Tensor]:
    """The adapter of a run whose silos compute in threads of this process, as the trunk does."""
    config = read_run_config(values)
    grid = InProcessGrid(app, SILOS, run_config=values, threads=threads)
    return dict(
        SplitStrategy(config, build_inner(config.strategy, config.lora)).start(grid).adapter
    )


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_of_silos_that_compute_at_once_can_be_repeated(
    folder: Path, state_home: Path, kind: str
) -> None:
    values = values_of(folder, **RUNS[kind])
    at_once, one_by_one = (ran(values, threads=threads) for threads in (SILOS, 1))
    assert at_once.keys() == one_by_one.keys()
    assert all(torch.equal(tensor, one_by_one[name]) for name, tensor in at_once.items())


@pytest.mark.exhaustive
def test_a_method_that_draws_by_itself_draws_on_from_stage_to_stage(
    folder: Path, state_home: Path
) -> None:
    values = values_of(folder, **RUNS["a method that draws by itself"])
    stages, one = ran(values), ran({**values, "trunk.devices": ""})
    assert all(torch.equal(tensor, one[name]) for name, tensor in stages.items())


@pytest.mark.exhaustive
@pytest.mark.parametrize(("first", "then"), [("", "cpu, cpu"), ("cpu, cpu", "")])
def test_a_run_that_is_resumed_drops_out_as_if_it_had_gone_on(
    folder: Path,
    state_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    then: str,
) -> None:
    """Also where its trunk is laid over other devices then."""
    values = values_of(folder, **{"num-server-rounds": 3})
    whole = ran(values)
    begun = list[int]()
    begin = SplitStrategy.configure_train

    def note(self: Any, server_round: int, *more: Any, **named: Any) -> Any:
        begun.append(server_round)
        if begun == [1, 2, 3]:
            raise RoundError("stopped by the test")
        return begin(self, server_round, *more, **named)

    monkeypatch.setattr(SplitStrategy, "configure_train", note)
    stopped = {**values, "output-dir": str(tmp_path / "out"), "trunk.devices": first}
    with pytest.raises(RoundError, match="stopped"):
        ran(stopped)
    resumed = ran({**stopped, "resume": True, "trunk.devices": then})
    assert begun == [1, 2, 3, 3]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
