"""The example without a split, run as it is, with silos of different ranks."""

import importlib
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import flatten_dict
from in_process_grid import FIRST_NODE, RUN_ID, InProcessGrid
from peft import PeftModel
from transformers import AutoModelForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "unsplit_lora"


@pytest.fixture
def apps(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return [
        importlib.import_module(f"unsplit_lora.{side}").app for side in ("server_app", "client_app")
    ]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["flora", "fedexlora"])
def test_it_trains_and_saves_a_standard_adapter(apps, run_config, tmp_path, monkeypatch, name):
    server_app, client_app = apps
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    table = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    values = flatten_dict(table["tool"]["flwr"]["app"]["config"])
    kept = ("model.name", "data.path", "data.prompt", "data.text")
    values |= {key: run_config[key] for key in kept if key in run_config}
    values |= {
        "strategy.name": name,
        "strategy.personal": "layers.0",
        "train.local-steps": 2,
        "strategy.min-nodes": 3,
        "output-dir": str(tmp_path),
    }
    grid = InProcessGrid(client_app, 3, run_config=values)
    if name == "flora":
        grid.contexts[FIRST_NODE + 1].node_config["lora-r"] = 3
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    base = AutoModelForCausalLM.from_pretrained(values["model.name"])
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    changed = [module for module in loaded.modules() if hasattr(module, "lora_B") and module.lora_B]
    assert any(bool(layer["default"].weight.any()) for layer in (m.lora_B for m in changed))
    assert list((tmp_path / "state").rglob("adapter/*/*/*.safetensors"))
