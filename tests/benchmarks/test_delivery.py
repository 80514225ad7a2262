"""The benchmark of the model's delivery runs, at toy size."""

import sys

import pytest
from benchmark_scripts import load_benchmark


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_it_measures_both_ends() -> None:
    bench = load_benchmark("delivery")
    shape = bench.Shape(
        layers=8, hidden=128, intermediate=256, vocabulary=500, bottom=1, top=1, round_trips=5
    )
    figures = bench.measure(shape)
    assert 0.2 < figures["download_mib"] / figures["checkpoint_mib"] < 0.5
    assert figures["cache_mib"] == pytest.approx(figures["download_mib"], rel=0.02)
    assert figures["second_download_mib"] == 0
    assert figures["round_trip_alone_ms"] > 0
