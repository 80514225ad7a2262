"""Flower strategies: `SplitStrategy`, and the inner strategies that a run config can name."""

from functools import partial

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from flower_split.config import sections
from flower_split.strategies import inner
from flower_split.strategies.alone import Alone
from flower_split.strategies.history import NodeRecord, SplitResult
from flower_split.strategies.hosting import TrunkHost
from flower_split.strategies.split import SplitStrategy

INNER_STRATEGIES: inner.StrategyTable = {
    "bulyan": Bulyan,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "fedyogi": FedYogi,
    "krum": Krum,
    "multikrum": MultiKrum,
    "qfedavg": partial(QFedAvg, train_loss_key="train-loss"),
}
"""Inner strategies by the name that `strategy.name` gives them."""


def build_inner(settings: sections.StrategyConfig) -> Strategy:
    """The inner strategy that a run config describes.

    Raises:
        ConfigError: with everything that is wrong with its name and options.
    """
    return inner.make_inner(settings, INNER_STRATEGIES)


def inner_problems(settings: sections.StrategyConfig) -> list[str]:
    """What is wrong with the strategy's name and options, for `read_run_config`."""
    return inner.inner_problems(settings, INNER_STRATEGIES)


__all__ = [
    "INNER_STRATEGIES",
    "Alone",
    "NodeRecord",
    "SplitResult",
    "SplitStrategy",
    "TrunkHost",
    "build_inner",
    "inner_problems",
]
