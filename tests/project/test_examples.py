"""Every example is an app that Flower accepts, with a run config that flower_split accepts."""

import importlib
import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import flatten_dict

from flower_split.config.run_config import read_run_config, run_keys
from flower_split.strategies import inner_problems

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(
    path.parent
    for pattern in ("*", "*/app")
    for path in ROOT.glob(f"examples/{pattern}/pyproject.toml")
    if "flwr" in tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
)


def shown(example: Path) -> str:
    return example.relative_to(ROOT / "examples").as_posix()


def app_table(example: Path) -> dict[str, Any]:
    data = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = data["tool"]["flwr"]["app"]
    return table


def test_there_is_a_quickstart() -> None:
    assert ROOT / "examples/quickstart" in EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=shown)
def test_flower_accepts_the_app(example: Path) -> None:
    config, warnings = load_and_validate(example / "pyproject.toml", check_module=False)
    assert warnings == []
    assert len(config["project"]["name"]) <= 32
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(example))) as bundle:
        assert "pyproject.toml" in bundle.namelist()


@pytest.mark.parametrize("example", EXAMPLES, ids=shown)
def test_the_run_config_is_valid(example: Path) -> None:
    config = flatten_dict(app_table(example)["config"])
    read_run_config(config, check_strategy=inner_problems)


@pytest.mark.parametrize("example", EXAMPLES, ids=shown)
def test_the_components_exist(example: Path) -> None:
    for reference in app_table(example)["components"].values():
        module, attribute = reference.split(":")
        if (example / module.split(".")[0]).exists():
            assert (example / (module.replace(".", "/") + ".py")).is_file()
        else:
            assert hasattr(importlib.import_module(module), attribute)


def test_the_quickstart_lists_every_key_as_only_listed_ones_can_be_replaced() -> None:
    assert set(flatten_dict(app_table(ROOT / "examples/quickstart")["config"])) == set(run_keys())


def test_installing_the_quickstarts_dependencies_needs_no_network() -> None:
    text = (ROOT / "examples/quickstart/pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["dependencies"] == []
