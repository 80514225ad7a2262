"""Split against unsplit in processes of their own, at toy size."""

import pytest
import split_over_unsplit


@pytest.mark.exhaustive
def test_it_measures_every_depth(bench) -> None:
    found = split_over_unsplit.compare(bench, toy=True)
    assert found.ratios["split_over_unsplit"] > 0
    assert list(found.figures["split_over_unsplit_by_depth"]) == [1, 2, 4]
    assert found.figures["bound"] > 0
    assert all(seconds > 0 for seconds in found.figures["work_seconds"].values())
    assert found.figures["by_measurement"]["split_over_unsplit"] > 0
