"""The compiled trunk's figures, at toy size."""

import shutil

import pytest
from benchmark_scripts import load_benchmark

compiled_trunk = load_benchmark("compiled_trunk")


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
def test_it_times_every_session() -> None:
    found = compiled_trunk.measure(layers=5, hidden=24, tokens=8, sessions=2, turns=2)
    assert found["compiled_over_not"] > 0
    assert len(found["seconds_of_every_sessions_first_pass"]) == 2
