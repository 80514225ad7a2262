"""The benchmark runs, at toy size; what is stored is what the documentation says."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import load_benchmark

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


@pytest.mark.slow
def test_labels_are_found_under_every_answer() -> None:
    benchmark = load_benchmark("chosen_answers")
    given = {"bottom": 2, "top": 2, "documents": 8, "tokens": 8}
    with benchmark.opened(benchmark.QUICKSTART, **given) as (model, texts):
        honest, *others = benchmark.lines(model, texts, [0.0])
    assert honest.answered == "honest" and honest.refined > 0.9
    assert len(others) == 3 and {one.noise for one in others} == {0.0}
    assert all(0 <= one.one_pass <= 1 and one.refined <= honest.refined for one in others)


@pytest.mark.parametrize("name", ["chosen_answers", "chosen_answers_real"])
def test_the_page_says_what_is_stored(name: str) -> None:
    stored = json.loads((RESULTS / f"{name}.json").read_text())["lines"]
    page = PAGE.read_text(encoding="utf-8")
    for noise in {one["noise"] for one in stored}:
        of_noise = {one["answered"]: one for one in stored if one["noise"] == noise}
        most = max(one["refined"] for one in of_noise.values())
        assert of_noise["honest"]["refined"] == most
    for one in stored:
        if one["answered"] in ("honest", "the same row everywhere"):
            assert f"{one['one_pass']:.1%}, {one['refined']:.1%}".replace("%", " %") in page
