"""Results of a run in the words of the report: from Flower's records to plain data."""

from collections.abc import Iterable, Mapping
from typing import Any

from flower_split.reporting import RoundResult, RunResult, installed_versions
from flower_split.reporting.result import EVAL_LOSS, perplexity
from flower_split.strategies import NodeRecord, SplitResult


def run_result(
    result: SplitResult,
    alone: SplitResult | None = None,
    *,
    config: Mapping[str, Any],
    seconds: float,
    failure: str = "",
) -> RunResult:
    """What `result.json` holds of a run, complete or not.

    Args:
        result: The federated run.
        alone: The baseline in which every silo trained without the others.
        config: The run config.
        seconds: Wall-clock time of everything.
        failure: Why the run ended early; empty when it did not.
    """
    names = silo_names(result.history + (alone.history if alone else []))
    statistics = [
        (names[record.node_id], record.statistics) for record in result.history if record.statistics
    ]
    wire: dict[str, dict[str, int]] = {}
    for silo, cost in statistics:
        held = wire.setdefault(silo, {})
        for hop in ("h1", "h2", "g2", "g1", "context"):
            held[hop] = held.get(hop, 0) + int(cost.get(f"bytes-{hop}", 0))
    return RunResult(
        rounds=_rounds(result, names),
        alone=_rounds(alone, names) if alone else (),
        wire_bytes=wire,
        parameter_share={
            silo: float(cost["parameter-share"])
            for silo, cost in statistics
            if "parameter-share" in cost
        },
        samples=result.samples,
        config=dict(config),
        versions=installed_versions(),
        seconds=seconds,
        failure=failure,
    )


def silo_names(history: Iterable[NodeRecord]) -> dict[int, str]:
    """Every node's silo, as it named itself; `node …` for one that never answered."""
    names: dict[int, str] = {}
    for record in history:
        if record.silo or record.node_id not in names:
            names[record.node_id] = record.silo or f"node {record.node_id}"
    return names


def _rounds(result: SplitResult, names: Mapping[int, str]) -> list[RoundResult]:
    numbers = sorted({record.server_round for record in result.history})
    return [
        RoundResult(
            server_round=number,
            train=_metrics(result.of("train", number), names),
            evaluate=_metrics(result.of("evaluate", number), names),
            aggregated=_aggregated(result, number),
            failures={
                names[record.node_id]: record.failure
                for purpose in ("train", "evaluate")
                for record in result.of(purpose, number)
                if record.failure
            },
            seconds=result.seconds.get(number, 0.0),
            silo_seconds={
                names[record.node_id]: {
                    name: round(float(value), 3)
                    for name, value in record.statistics.items()
                    if "seconds" in name
                }
                for record in result.of("train", number)
                if record.statistics
            },
        )
        for number in numbers
    ]


def _metrics(records: Iterable[NodeRecord], names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    return {names[record.node_id]: dict(record.metrics) for record in records if record.metrics}


def _aggregated(result: SplitResult, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metrics in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        found.update(metrics.get(number) or {})
    loss = found.get(EVAL_LOSS)
    if isinstance(loss, float) and "perplexity" in found:
        # A mean of perplexities is none; the perplexity of the mean loss is.
        found["perplexity"] = perplexity(loss)
    return found
