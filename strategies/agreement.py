"""Agreement of replies: what Flower's strategies ask of a set of replies before they average it.

A strategy of Flower ends the whole run when one silo's metrics have another name or lack the
weight. Here such a reply is found first, so that only the silo that sent it is left out.
"""

import math
from collections import Counter
from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict

Contents = Mapping[int, RecordDict]
"""Content of a reply by node id."""

# What of a reply is kept in the history, and written to result.json, is bounded.
MOST_METRICS, LONGEST_NAME, MOST_VALUES = 128, 128, 4096

MOST_WEIGHT = 1e15
"""Largest weight of a reply: sums of such weights stay exact enough to divide by."""


def own_problem(content: RecordDict, weight_key: str, *, trained: bool) -> str:
    """Why a single reply cannot be averaged; empty when it can."""
    counts = len(content.array_records), len(content.metric_records)
    wanted = (1, 1) if trained else (counts[0], 1)
    if counts != wanted:
        return (
            f"the reply has {counts[0]} ArrayRecords and {counts[1]} MetricRecords, expected "
            f"{'exactly one of each' if trained else 'exactly one MetricRecord'}"
        )
    metrics = _metrics(content)
    weight = metrics.get(weight_key)
    if isinstance(weight, list) or weight is None or not 0 < weight <= MOST_WEIGHT:
        return (
            f"metric {weight_key!r} must be a number above 0 and at most {MOST_WEIGHT:g}, not "
            f"{weight!r}"
        )
    if len(metrics) > MOST_METRICS:
        return f"the reply has {len(metrics)} metrics, expected at most {MOST_METRICS}"
    for name, value in metrics.items():
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            return (
                f"a metric's name has {len(name)} characters, expected 1 to {LONGEST_NAME}, all "
                "printable"
            )
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_VALUES:
            return f"metric {name!r} has {len(values)} values, expected at most {MOST_VALUES}"
        if not all(math.isfinite(entry) for entry in values):
            return f"metric {name!r} is not finite: the training diverged"
    return ""


def outvoted(contents: Contents) -> dict[int, str]:
    """Nodes whose metrics are named otherwise than those of most nodes, and how."""
    shapes = {node: _shape(content) for node, content in contents.items()}
    if len(set(shapes.values())) < 2:
        return {}
    usual = Counter(shapes.values()).most_common(1)[0][0]
    return {
        node: (
            f"its metrics are {', '.join(sorted(keys))} in record {name!r}; most silos sent "
            f"{', '.join(sorted(usual[1]))} in record {usual[0]!r}"
        )
        for node, (name, keys) in shapes.items()
        if (name, keys) != usual
    }


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _shape(content: RecordDict) -> tuple[str, frozenset[str]]:
    """Name of the metrics' record, and every metric with its length where it is a list."""
    name, metrics = next(iter(content.metric_records.items()))
    return name, frozenset(
        f"{key}[{len(value)}]" if isinstance(value, list) else key for key, value in metrics.items()
    )
