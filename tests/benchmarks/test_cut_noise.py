"""The benchmark runs, at toy size."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.slow


def load() -> ModuleType:
    path = Path(__file__).with_name("cut_noise.py")
    spec = importlib.util.spec_from_file_location("cut_noise", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.exhaustive
def test_a_loss_and_an_epsilon_for_every_noise() -> None:
    lines = list(load().table(1, [0.5]))
    assert [line.split()[0] for line in lines[2:]] == ["nothing", "0", "0.5"]
    losses = [float(lines[2].split()[1]), *(float(line.split()[2]) for line in lines[3:])]
    assert losses[2] > losses[0] > 0
    assert float(lines[-1].split()[-1]) > 20
