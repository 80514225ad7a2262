"""The recipe of an aggregation strategy, followed by a package outside flower_split."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison.entries import ENTRIES
from in_process_grid import InProcessGrid
from outside_package import install
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_run import serve_run
from flower_split.strategies import INNER_STRATEGIES, LoraStrategy

CODE = '''
from typing import Any

from flower_split.lowrank import Factors
from flower_split.strategies import LoraStrategy, ModuleResult, ModuleRound


class LargestSilo(LoraStrategy):
    """The update of the silo with the most examples, shrunk by an option."""

    name = "largestsilo"

    def __init__(self, *, shrink: float = 1.0, **lora: Any) -> None:
        super().__init__(**lora)
        self.shrink = shrink

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        update = module.updates[max(range(len(module.updates)), key=module.weights.__getitem__)]
        trained = Factors(a=update.a, b=self.shrink * update.b, scale=module.before.scale)
        return ModuleResult(trained=trained)
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = save_tiny_run(tmp_path_factory.mktemp("tiny"))
    return folder


@pytest.mark.medium
def test_a_strategy_of_another_package_is_named_in_the_run_config(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = {"flower_split.strategies": {"largestsilo": "largest_silo:LargestSilo"}}
    monkeypatch.syspath_prepend(str(install(tmp_path, "largest_silo", plugin, CODE)))

    def run(**options: Any) -> dict[str, torch.Tensor]:
        changes = {"strategy.name": "largestsilo", "num-server-rounds": 1, **options}
        config = tiny_run_config(tiny, **changes)
        result = serve_run(InProcessGrid(client_app, 3, run_config=config), config)
        return dict(result.arrays.to_torch_state_dict())

    whole, nothing = run(), run(**{"strategy.shrink": 0.0})
    trained = [name for name in whole if ".lora_B" in name]
    assert trained and all(whole[name].abs().sum() > 0 for name in trained)
    for name in whole:
        expected = torch.zeros_like(whole[name]) if ".lora_B" in name else whole[name]
        assert torch.equal(nothing[name], expected), name


def ours() -> set[str]:
    """The strategies of flower_split that know of LoRA; the others are Flower's."""
    return {
        name
        for name, make in INNER_STRATEGIES.items()
        if inspect.isclass(make) and issubclass(make, LoraStrategy)
    }


def test_every_strategy_of_ours_is_described_and_compared(root: Path) -> None:
    page = (root / "docs/strategies.md").read_text(encoding="utf-8")
    assert ours() <= set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    assert ours() <= {entry.strategy for entry in ENTRIES}
