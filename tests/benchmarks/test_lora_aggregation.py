"""The benchmark runs, at toy size."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
    path = Path(__file__).with_name("lora_aggregation.py")
    spec = importlib.util.spec_from_file_location("lora_aggregation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_strategy_that_takes_the_ranks() -> None:
    bench = load()
    shapes = {"small": (24, 32, 4)}
    equal = bench.measure(5, [4], shapes)
    assert set(equal["seconds"]) == set(bench.KINDS)
    mixed = bench.measure(5, [2, 4], shapes)
    assert set(mixed["seconds"]) == {"flora", "flexlora", "hetlora"}
    for found in mixed["seconds"].values():
        assert found["small"] >= 0
        assert found["model"] >= found["small"]
    assert mixed["peak_mib"] >= mixed["start_mib"] > 0


def test_the_replies_are_those_of_all_silos_and_modules() -> None:
    bench = load()
    found = bench.measure(2, [4], {"small": (1024, 1024, 1)}, ["fedavglora"])
    assert found["replies_mib"] == 2 * bench.LAYERS * 4 * (1024 + 1024) * 4 / 2**20
