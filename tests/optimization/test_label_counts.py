"""Counts of labels: F1 of a union from averages, and what a silo cannot have counted."""

import pytest

from flower_split.optimization.label_counts import (
    LabelCounts,
    from_metrics,
    macro_f1,
    problem_of,
    to_metrics,
)

OURS = to_metrics(LabelCounts(right=[3, 1], actual=[4, 3], predicted=[5, 2]))
THEIRS = to_metrics(LabelCounts(right=[0, 7], actual=[0, 7], predicted=[0, 7]))


def test_f1_of_a_union_is_that_of_the_average() -> None:
    both = {
        name: [(a + b) / 2 for a, b in zip(OURS[name], THEIRS[name], strict=True)] for name in OURS
    }
    counts = from_metrics(both)
    assert counts is not None
    union = LabelCounts(right=[3, 8], actual=[4, 10], predicted=[5, 9])
    assert macro_f1(counts) == pytest.approx(macro_f1(union))


@pytest.mark.parametrize("counted", [OURS, THEIRS, {}, {"labels-right": [9.0]}])
def test_what_was_counted_has_no_problem(counted: dict[str, list[float]]) -> None:
    assert problem_of(counted) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"labels-right": [1e15, 0.0]},
        {"labels-right": [-0.1, 0.0]},
        {"labels-right": [0.6, 0.1]},
        {"labels-actual": [4 / 7, 0.0]},
        {"labels-predicted": [1.0, 1.0]},
    ],
)
def test_what_nobody_counts_is_a_problem(changed: dict[str, list[float]]) -> None:
    assert "no counts of labels" in problem_of({**OURS, **changed})
