"""Split against unsplit, at toy size."""

import split_over_unsplit


def test_it_measures_both() -> None:
    found = split_over_unsplit.measure(toy=True)
    assert found.ratios["split_over_unsplit"] > 0
    assert found.figures["split_tokens_per_second"] > 0
