"""One thread, stages and replicas are timed alike."""

import pytest
from benchmark_scripts import load_benchmark

stages = load_benchmark("stages")


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["threads", "ray", "replicas"])
def test_kinds_of_trunks_are_timed(tmp_path, kind):
    folder = stages.save_model(tmp_path / "model", stages.Size(layers=2, width=64))
    found = stages.compared(folder, 64, kind, 1, 6)
    assert len(found["ratios"]) == 1 and found["ratio"] > 0
    if kind != "replicas":
        assert stages.hop(folder, 64, kind, times=2)["one_ms"] > 0
