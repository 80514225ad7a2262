"""A round in one line of the log: metrics, whose replies counted, and how long it took."""

from flower_split.config.silo_order import silo_order
from flower_split.reporting.figures import four_digits, in_seconds
from flower_split.reporting.result import TRAIN_LOSS
from flower_split.strategies.history import SplitResult

BEFORE = "before training"
PERPLEXITY = "perplexity"
"""Of which an average over silos is none."""
MOST_NAMES = 12
"""Silos that are named; of more than that, the number is told."""


def round_line(result: SplitResult, server_round: int, num_rounds: int) -> str:
    """The line of a round that has ended; round 0 is the evaluation before the first."""
    trained = dict(result.train_metrics_clientapp.get(server_round) or {})
    evaluated = dict(result.evaluate_metrics_clientapp.get(server_round) or {})
    loss = {TRAIN_LOSS: trained[TRAIN_LOSS]} if TRAIN_LOSS in trained else {}
    metrics = [
        f"{name} {four_digits(value)}"
        for name, value in {**loss, **evaluated}.items()
        if isinstance(value, float) and name != PERPLEXITY
    ]
    records = result.of("train" if server_round else "evaluate", server_round)
    silos = [record.silo or f"node {record.node_id}" for record in records if not record.failure]
    failed = len(records) - len(silos)
    parts = [
        ", ".join(metrics),
        _named(silos),
        f"{failed} of {len(records)} did not count" if failed else "",
        in_seconds(result.seconds.get(server_round, 0.0)),
    ]
    where = f"round {server_round} of {num_rounds}" if server_round else BEFORE
    return f"{where}: {'; '.join(filter(None, parts))}"


def _named(silos: list[str]) -> str:
    if not silos:
        return "no silo"
    if len(silos) > MOST_NAMES:
        return f"{len(silos)} silos"
    return f"silo{'s' * (len(silos) > 1)} {', '.join(sorted(silos, key=silo_order))}"
