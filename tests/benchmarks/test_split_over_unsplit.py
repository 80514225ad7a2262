"""The benchmark runs, at toy size."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
    path = Path(__file__).with_name("split_over_unsplit.py")
    spec = importlib.util.spec_from_file_location("split_over_unsplit", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_measures_both() -> None:
    bench = load()
    shape = bench.Shape(
        layers=5, hidden=16, heads=2, vocabulary=31, tokens=8, microbatches=2, turns=2, threads=1
    )
    ratios = bench.measure(shape)
    assert ratios["split_over_unsplit"] > 0
    assert ratios["split_tokens_per_second"] > 0
