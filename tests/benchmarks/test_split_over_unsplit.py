"""The benchmark runs, at toy size."""

from benchmark_scripts import load_benchmark


def test_it_measures_both() -> None:
    bench = load_benchmark("split_over_unsplit")
    shape = bench.Shape(
        layers=5, hidden=16, heads=2, vocabulary=31, tokens=8, microbatches=2, turns=2, threads=1
    )
    ratios = bench.measure(shape)
    assert ratios["split_over_unsplit"] > 0
    assert ratios["split_tokens_per_second"] > 0
