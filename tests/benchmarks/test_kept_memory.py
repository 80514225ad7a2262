"""The figures of kept memory, with a small model and a head of the usual width."""

import pytest
from benchmark_scripts import load_benchmark

from flower_split.devices import allocator

kept_memory = load_benchmark("kept_memory")


@pytest.mark.exhaustive
@pytest.mark.skipif(not allocator.is_glibc(), reason="the allocator is not glibc's")
def test_it_counts_the_faults_that_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    found = kept_memory.measure(layers=1, hidden=24, vocabulary=50257, tokens=128, turns=1)
    assert found["seconds_kept_over_not"] > 0
    assert found["peak_kept_over_not"] < 2
    assert found["faults_kept"] < 0.85 * found["faults_not_kept"]  # which blocks fit varies
