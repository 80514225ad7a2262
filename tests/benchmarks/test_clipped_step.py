"""The benchmark runs, on a toy; what is stored is what the documentation says."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import load_benchmark
from transformers import GPT2Config

STORED = Path(__file__).parent / "results" / "clipped_step.json"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.medium
def test_a_step_of_each_kind_is_measured() -> None:
    config = GPT2Config(n_embd=32, n_head=2, n_layer=5, vocab_size=97, n_positions=16)
    cost = load_benchmark("clipped_step").measure(config, steps=1, rows=2, tokens=8, microbatches=2)
    assert cost.plain > 0 and cost.private > 0
    assert cost.bytes_an_example == 4 * 5 * 8 * (32 + 96)


def test_the_page_says_what_is_stored() -> None:
    page, stored = PAGE.read_text(encoding="utf-8"), json.loads(STORED.read_text())
    assert f"{stored['ratio']:.2f}" in page and stored["ratio"] <= 1.6
    assert f"{stored['bytes_an_example'] / 1e6:.2f} MB" in page
