"""The benchmark runs, at toy size; what is stored is what the documentation says."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import load_benchmark

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"


@pytest.mark.exhaustive
def test_a_loss_and_what_attacks_find_for_every_noise() -> None:
    benchmark = load_benchmark("defended_utility")
    sizes = {"steps": 1, "documents": 8, "tokens": 8, "public": 16}
    bench = benchmark.Bench(benchmark.settings(None, 4), **sizes)
    plain, noisy = bench.lines([100.0])
    assert (plain.noise, noisy.noise) == (None, 100.0)
    assert noisy.loss > plain.loss > 0 and plain.before != plain.loss
    assert plain.found["B3"] > 0.9 > noisy.found["B3"] + 0.3


def test_the_page_says_what_is_stored() -> None:
    stored = json.loads((RESULTS / "defended_utility_real.json").read_text())
    page = PAGE.read_text(encoding="utf-8")
    assert stored["command"].replace("'", "") in page
    for line in stored["lines"]:
        found = line["found"]
        assert f"{line['before']:.2f}, {line['loss']:.2f}" in page
        shares = [f"{100 * found[name]:.1f}" for name in ("F2", "F3", "B3", "B3+F2")]
        assert " | ".join(shares) in page
