"""Early stopping: which round is the best so far, and for how long none was better."""

import logging
from collections.abc import Iterator, Mapping

from flwr.app import MetricRecord

from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError

logger = logging.getLogger(__name__)

Evaluations = Mapping[int, MetricRecord]
"""What the silos' evaluation gave, averaged, by round; 0 is the one before the first."""


def best_round(config: SplitConfig, evaluations: Evaluations) -> int | None:
    """The trained round with the best `best-metric`, the first of equals; None without any.

    Raises:
        ConfigError: the silos report no such metric.
    """
    best: tuple[float, int] | None = None
    for server_round, loss in _losses(config, evaluations):
        if server_round > 0 and (best is None or loss < best[0]):
            best = (loss, server_round)
    return None if best is None else best[1]


def rounds_without_progress(config: SplitConfig, evaluations: Evaluations) -> int:
    """Evaluated rounds since the last that was better than all before it by `early-stop.min-delta`.

    What was evaluated before the first round counts as something to be better than.

    Raises:
        ConfigError: the silos report no such metric.
    """
    best, waited = float("inf"), 0
    for _, loss in _losses(config, evaluations):
        progress = loss < best - config.early_stop.min_delta
        best, waited = (loss, 0) if progress else (best, waited + 1)
    return waited


def stops_early(config: SplitConfig, evaluations: Evaluations, server_round: int) -> bool:
    """Whether `early-stop.patience` ends the run before `server_round`; says so in the log.

    Raises:
        ConfigError: the silos report no such metric.
    """
    patience = config.early_stop.patience
    if not patience or server_round == 0:
        return False
    waited = rounds_without_progress(config, evaluations)
    if waited < patience:
        return False
    logger.info(
        "stopping after round %d: %s has not become better in %d rounds",
        server_round - 1,
        config.best_metric,
        waited,
    )
    return True


def _losses(config: SplitConfig, evaluations: Evaluations) -> Iterator[tuple[int, float]]:
    """Round and metric, with its sign such that lower is better."""
    sign = 1.0 if config.best_is == "lowest" else -1.0
    for server_round, metrics in sorted(evaluations.items()):
        value = metrics.get(config.best_metric)
        if isinstance(value, list) or value is None:
            names = ", ".join(k for k, v in metrics.items() if not isinstance(v, list)) or "none"
            raise ConfigError(
                f"best-metric {config.best_metric!r} is not among the numbers that the silos' "
                f"evaluation gives: {names}"
            )
        yield server_round, sign * float(value)
