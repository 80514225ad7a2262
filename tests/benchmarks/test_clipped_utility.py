"""The benchmark runs, at toy size; what is stored is what the documentation says."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import load_benchmark

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.slow
def test_a_loss_and_an_epsilon_for_every_noise() -> None:
    pytest.importorskip("dp_accounting")
    benchmark = load_benchmark("clipped_utility")
    flat = benchmark.settings(None, steps=1, batch=4)
    plain, clipped, noisy = benchmark.lines(flat, [0.0, 4.0])
    assert (plain.noise, clipped.noise, noisy.noise) == (None, 0.0, 4.0)
    assert plain.epsilon is None and clipped.epsilon is None and noisy.epsilon > 0
    assert all(line.loss > 0 for line in (plain, clipped, noisy))


@pytest.mark.parametrize("name", ["clipped_utility", "clipped_utility_real"])
def test_the_page_says_what_is_stored(name: str) -> None:
    stored = json.loads((RESULTS / f"{name}.json").read_text())["lines"]
    page = PAGE.read_text(encoding="utf-8")
    losses = ", ".join(f"{line['loss']:.3f}" for line in stored if line["epsilon"] is not None)
    epsilons = ", ".join(f"{line['epsilon']:.3g}" for line in stored if line["epsilon"] is not None)
    assert losses in page and epsilons in page
