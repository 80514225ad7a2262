"""Counts of labels, of which accuracy and F1 of any union of data can be computed.

A mean of F1 scores is no F1 score. Silos therefore report each count per prediction, which an
average weighted by their numbers of predictions makes those of all silos together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_RIGHT, _ACTUAL, _PREDICTED = "labels-right", "labels-actual", "labels-predicted"

_ROUNDED = 1e-6

Value = int | float | list[int] | list[float]


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How often each label was there and was found, in the order of the labels."""

    right: Sequence[float]
    """Predictions of it that are right."""
    actual: Sequence[float]
    """Places where it is the label."""
    predicted: Sequence[float]
    """Predictions of it."""


def macro_f1(counts: LabelCounts) -> float:
    """Mean of the labels' F1, 2 right / (actual + predicted), over those that occur at all."""
    scores = [
        2 * right / (actual + predicted)
        for right, actual, predicted in zip(
            counts.right, counts.actual, counts.predicted, strict=True
        )
        if actual + predicted > 0
    ]
    return sum(scores) / len(scores) if scores else 0.0


def to_metrics(counts: LabelCounts) -> dict[str, list[float]]:
    """The counts per prediction, by the names under which they are reported."""
    total = sum(counts.predicted)
    return {
        name: [float(count) / total for count in held]
        for name, held in (
            (_RIGHT, counts.right),
            (_ACTUAL, counts.actual),
            (_PREDICTED, counts.predicted),
        )
    }


def problem_of(metrics: Mapping[str, object]) -> str:
    """Why the counts in what a silo reports are none; empty where they are, or where it has none.

    Per prediction, each is 0 to 1, a label is found rightly no more often than it is there or is
    found, and both kinds of places add up to 1.
    """
    counts = from_metrics(metrics)
    if counts is None:
        return ""
    lists = (counts.right, counts.actual, counts.predicted)
    single = all(0 <= count <= 1 + _ROUNDED for held in lists for count in held)
    fitting = all(
        right <= min(actual, predicted) + _ROUNDED
        for right, actual, predicted in zip(*lists, strict=True)
    )
    whole = all(abs(sum(held) - 1) <= _ROUNDED for held in (counts.actual, counts.predicted))
    if single and fitting and whole:
        return ""
    return f"its {_RIGHT}, {_ACTUAL} and {_PREDICTED} are no counts of labels per prediction"


def from_metrics(metrics: Mapping[str, object]) -> LabelCounts | None:
    """The counts of an average of what `to_metrics` gave; None where they are not all there."""
    lists = [metrics.get(name) for name in (_RIGHT, _ACTUAL, _PREDICTED)]
    found = [held for held in lists if isinstance(held, list)]
    if len(found) < len(lists) or len({len(held) for held in found}) != 1:
        return None
    right, actual, predicted = found
    return LabelCounts(right=right, actual=actual, predicted=predicted)
