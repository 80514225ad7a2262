"""Flower strategies: `SplitStrategy`, and the inner strategies that a run config can name."""

from functools import partial

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from flower_split.config import sections
from flower_split.reporting import result
from flower_split.strategies import inner
from flower_split.strategies.alone import Alone
from flower_split.strategies.history import NodeRecord, SplitResult
from flower_split.strategies.hosting.host import TrunkHost
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.fedavg import FedAvgLoRA
from flower_split.strategies.lora.fedex import FedExLoRA
from flower_split.strategies.lora.fedsa import FedSALoRA
from flower_split.strategies.lora.ffa import FFALoRA
from flower_split.strategies.lora.flex import FlexLoRA
from flower_split.strategies.lora.flora import FLoRA
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound
from flower_split.strategies.lora.het import HetLoRA
from flower_split.strategies.lora.ro import RoLoRA
from flower_split.strategies.lora.scaffold import ScaffoldLoRA
from flower_split.strategies.personal_parts import PersonalParts
from flower_split.strategies.split import SplitStrategy
from flower_split.strategies.table import StrategyTable

INNER_STRATEGIES: inner.NamedStrategies = {
    "bulyan": Bulyan,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedavglora": FedAvgLoRA,
    "fedexlora": FedExLoRA,
    "fedmedian": FedMedian,
    "fedprox": FedProx,
    "fedsalora": FedSALoRA,
    "fedtrimmedavg": FedTrimmedAvg,
    "fedyogi": FedYogi,
    "ffalora": FFALoRA,
    "flexlora": FlexLoRA,
    "flora": FLoRA,
    "hetlora": HetLoRA,
    "krum": Krum,
    "multikrum": MultiKrum,
    "qfedavg": partial(QFedAvg, train_loss_key=result.TRAIN_LOSS),
    "rolora": RoLoRA,
    "scaffoldlora": ScaffoldLoRA,
}
"""Strategies by the name that `strategy.name` gives them; plugins come on top."""


def build_inner(
    settings: sections.StrategyConfig, lora: sections.LoraSettings | None = None
) -> Strategy:
    """The strategy that a run config describes, one of `INNER_STRATEGIES` or a plugin's.

    Args:
        settings: The section `strategy`.
        lora: The section `lora`; None takes its defaults.

    Raises:
        ConfigError: with everything that is wrong with its name and options.
    """
    return inner.make_inner(settings, StrategyTable(INNER_STRATEGIES), lora)


def inner_problems(settings: sections.StrategyConfig) -> list[str]:
    """What is wrong with the strategy's name and options, for `read_run_config`."""
    return inner.inner_problems(settings, StrategyTable(INNER_STRATEGIES))


__all__ = [
    "INNER_STRATEGIES",
    "Alone",
    "FFALoRA",
    "FLoRA",
    "FedAvgLoRA",
    "FedExLoRA",
    "FedSALoRA",
    "FlexLoRA",
    "HetLoRA",
    "LoraStrategy",
    "ModuleResult",
    "ModuleRound",
    "NodeRecord",
    "PersonalParts",
    "RoLoRA",
    "ScaffoldLoRA",
    "SplitResult",
    "SplitStrategy",
    "StrategyTable",
    "TrunkHost",
    "build_inner",
    "inner_problems",
]
