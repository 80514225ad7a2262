"""One trunk for many silos, at toy size."""

from dataclasses import replace

import many_silos
import pytest
from many_silos import alone
from throughput.shapes import TOY


def test_both_ways_of_the_trunk_alone_are_measured() -> None:
    found = alone(replace(TOY, rows=1), silos=3, turns=1)
    assert set(found) == {"batched", "serial"}
    for way in found.values():
        assert way["tokens_per_second"] > 0
        assert 0 < way["answer_seconds_p50"] <= way["answer_seconds_p95"]


@pytest.mark.exhaustive
def test_the_whole_part_runs_in_processes_of_its_own() -> None:
    found = many_silos.measure(toy=True)
    together = found.figures["silos_together"][0]
    assert together["rows_beside"] > 0
    assert 0 < together["the_trunks_share_of_that"] < 1
    assert together["share_of_the_cores"] > 0
    assert found.figures["batched_over_serial_without_adapters"] > 0
    assert all(ratio > 0 for ratio in found.ratios.values())
    assert set(found.ratios) == {
        "silos8_over_unsplit",
        "batched_over_serial",
        "trunk_memory_32_over_1",
    }
