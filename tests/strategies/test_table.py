"""Strategies of other packages: the example, installed without a network, and broken ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_silos import Federation, Silo, toy_adapter

from flower_split.config.model import LoraSettings
from flower_split.config.sections import StrategyConfig
from flower_split.errors import ConfigError
from flower_split.strategies import build_inner, inner_problems

EXAMPLE = Path(__file__).parents[2] / "examples" / "strategy_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example, built from a copy and installed into a folder of its own."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, root / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--quiet", "--target", str(root / "site"), str(root / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root / "site"


def test_an_installed_strategy_is_chosen_by_name_with_its_options(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    settings = StrategyConfig(name="medianlora", fraction_evaluate=0.0, options={"shrink": 0.5})
    strategy = build_inner(settings, LoraSettings(r=4, alpha=8.0))
    assert type(strategy).__name__ == "MedianLoRA"
    assert strategy.lora.alpha == 8.0
    federation = Federation([Silo(), Silo(), Silo()])
    state = federation.run(strategy, toy_adapter(4))
    for name, tensor in state.items():
        silos = torch.stack([own[name].double() for own in federation.own(1)])
        expected = silos.median(dim=0).values * (0.5 if ".lora_B" in name else 1.0)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    wrong = StrategyConfig(name="medianlora", options={"shrunk": 0.5})
    assert "did you mean 'strategy.shrink'?" in inner_problems(wrong)[0]


def register(folder, name, value, package="broken_plugin"):
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flower_split.strategies]\n{name} = {value}\n")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("nowhere", "no_such_module:Strategy", "cannot be imported from no_such_module:Strategy"),
        ("notcallable", "string:digits", "is no class or function that makes a strategy"),
        ("notone", "builtins:dict", "which is no strategy of Flower's message API"),
        ("flora", "builtins:dict", "the name of one of flower_split's own"),
    ],
)
def test_a_broken_plugin_is_named(tmp_path, monkeypatch, name, value, said):
    register(tmp_path, name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = inner_problems(StrategyConfig(name=name))
    assert len(problems) == 1
    assert said in problems[0]
    with pytest.raises(ConfigError):
        build_inner(StrategyConfig(name=name))


def test_a_plugin_that_overrides_a_method_by_its_old_name_is_refused(tmp_path, monkeypatch):
    source = "def kept_parts(self):\n        return frozenset('B')"
    (tmp_path / "old_fashioned.py").write_text(
        "from flower_split.strategies import FedAvgLoRA\n\n\n"
        f"class Mine(FedAvgLoRA):\n    {source}\n"
    )
    register(tmp_path, "mine", "old_fashioned:Mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = inner_problems(StrategyConfig(name="mine"))
    assert "Mine overrides kept_parts" in problem and "rename it to personal_parts" in problem


def test_two_packages_with_one_name_are_refused(tmp_path, monkeypatch):
    register(tmp_path, "twice", "builtins:dict", "first_plugin")
    register(tmp_path, "twice", "builtins:dict", "second_plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = inner_problems(StrategyConfig(name="twice"))
    assert "first_plugin and second_plugin" in problem


def test_an_unknown_name_is_answered_with_the_nearest():
    (problem,) = inner_problems(StrategyConfig(name="flexlorra"))
    assert "did you mean 'flexlora'?" in problem
