"""Results of a run in the words of the report: from Flower's records to plain data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from flower_split.optimization.loss import perplexity
from flower_split.reporting import RoundResult, RunResult, installed_versions
from flower_split.reporting.counters import bytes_counter
from flower_split.reporting.result import EVAL_LOSS
from flower_split.strategies import NodeRecord, SplitResult
from flower_split.strategies.hosting.replies import named
from flower_split.transport.messages import WireBytes

Costs: TypeAlias = Sequence[tuple[str, Mapping[str, int | float]]]
"""What every session of a run cost, with its silo's name."""


def run_result(
    result: SplitResult,
    alone: SplitResult | None = None,
    *,
    config: Mapping[str, Any],
    seconds: float,
    failure: str = "",
    running: bool = False,
    prompt_format: Mapping[str, str] | None = None,
    privacy: Sequence[Mapping[str, object]] = (),
) -> RunResult:
    """What `result.json` holds of a run, complete or not.

    Args:
        result: The federated run.
        alone: The baseline in which every silo trained without the others.
        config: The run config.
        seconds: Wall-clock time of everything.
        failure: Why the run ended early; empty when it did not.
        running: Whether it has not ended yet.
        prompt_format: How fields became texts.
        privacy: What may be said of it, statement by statement.
    """
    names = silo_names(result.history + (alone.history if alone else []))
    costs = [(names[record.node_id], record.statistics) for record in result.history]
    return RunResult(
        rounds=_rounds(result, names),
        alone=_rounds(alone, names) if alone else (),
        wire_bytes=_wire_bytes(costs),
        delivery_bytes=_total(costs, "delivery-bytes"),
        parameter_share={
            silo: float(cost["parameter-share"])
            for silo, cost in costs
            if "parameter-share" in cost
        },
        samples=result.samples,
        config=dict(config),
        versions=installed_versions(),
        seconds=seconds,
        failure=failure,
        state="running" if running else "failed" if failure else "completed",
        prompt_format=dict(prompt_format or {}),
        privacy=tuple(privacy),
    )


def silo_names(history: Iterable[NodeRecord]) -> dict[int, str]:
    """Every node's silo, as it named itself; `node …` for one that never answered.

    What names itself in an error only keeps that name unless another node has it.
    """
    names, failed = dict[int, str](), dict[int, str]()
    for record in history:
        if record.silo:
            names[record.node_id] = record.silo
        else:
            failed.setdefault(record.node_id, named(record.failure)[0])
    for node_id, name in failed.items():
        taken = not name or name in names.values()
        names.setdefault(node_id, f"node {node_id}" if taken else name)
    return names


def round_result(
    result: SplitResult, number: int, names: Mapping[int, str] | None = None
) -> RoundResult:
    """One round of `result`; silos are named by `names`, or else as `silo_names` finds."""
    names = silo_names(result.history) if names is None else names
    train, evaluate = result.of("train", number), result.of("evaluate", number)
    return RoundResult(
        server_round=number,
        train=_metrics(train, names),
        evaluate=_metrics(evaluate, names),
        aggregated=_aggregated(result, number),
        failures={
            names[record.node_id]: named(record.failure)[1]
            for record in (*train, *evaluate)
            if record.failure
        },
        seconds=result.seconds.get(number, 0.0),
        train_counters=_counters(train, names),
        evaluate_counters=_counters(evaluate, names),
    )


def _rounds(result: SplitResult, names: Mapping[int, str]) -> list[RoundResult]:
    numbers = sorted({record.server_round for record in result.history})
    return [round_result(result, number, names) for number in numbers]


def _wire_bytes(costs: Costs) -> dict[str, dict[str, int]]:
    by_hop = {hop: _total(costs, bytes_counter(hop)) for hop in WireBytes()}
    return {
        silo: {hop: held[silo] for hop, held in by_hop.items() if silo in held}
        for silo in dict.fromkeys(silo for silo, cost in costs if cost)
    }


def _total(costs: Costs, counter: str) -> dict[str, int]:
    """Sum over the run of a counter, by silo; without silos that do not have it."""
    totals: dict[str, int] = {}
    for silo, cost in costs:
        if counter in cost:
            totals[silo] = totals.get(silo, 0) + int(cost[counter])
    return totals


def _counters(
    records: Iterable[NodeRecord], names: Mapping[int, str]
) -> dict[str, dict[str, int | float]]:
    return {
        names[record.node_id]: {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in record.statistics.items()
        }
        for record in records
        if record.statistics
    }


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
