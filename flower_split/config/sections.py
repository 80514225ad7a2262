"""The sections of a run's configuration: frozen, keyword-only, checked where they are made.

Field `learning_rate` of section `train` is the run-config key `train.learning-rate`;
`flower_split.config.run_config` makes the sections from a Flower run config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.config.conflicts import conflicts
from flower_split.config.data import DataConfig
from flower_split.config.keeping import DIRECTIONS, CheckpointConfig, EarlyStopConfig
from flower_split.config.model import (
    ATTENTION,
    AUTOCAST,
    DELIVERY,
    DTYPES,
    CutConfig,
    LoraSettings,
    ModelConfig,
)
from flower_split.config.strategy import StrategyConfig
from flower_split.config.tls import TLS_MODES, TlsConfig
from flower_split.config.training import SCHEDULES, TrainConfig
from flower_split.config.trunk import TRUNK_ADAPTERS, TrunkConfig
from flower_split.config.wire import CODECS, HOPS, WireConfig
from flower_split.errors import ConfigError

__all__ = [
    "ATTENTION",
    "AUTOCAST",
    "CODECS",
    "DELIVERY",
    "DIRECTIONS",
    "DTYPES",
    "HOPS",
    "SCHEDULES",
    "TLS_MODES",
    "TRUNK_ADAPTERS",
    "CheckpointConfig",
    "CutConfig",
    "DataConfig",
    "EarlyStopConfig",
    "LoraSettings",
    "ModelConfig",
    "SplitConfig",
    "StrategyConfig",
    "TlsConfig",
    "TrainConfig",
    "TrunkConfig",
    "WireConfig",
]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """A whole run's configuration."""

    model: ModelConfig
    split: CutConfig = field(default_factory=CutConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    num_server_rounds: int = 3
    """Federated rounds."""
    seed: int = 0
    """Seed of everything random: adapters, order of the data, dropout, which silos are asked."""
    output_dir: str = ""
    """Folder for adapter, `result.json`, plot and checkpoints; empty writes nothing."""
    tensorboard: bool = False
    """Whether every round's scalars, by silo, are written to `tensorboard` in `output_dir` as the
    run goes; needs the package `tensorboard` on the server."""
    resume: bool = False
    """Whether the run resumes from the last good checkpoint in `output_dir`, if there is one."""
    best_metric: str = "eval-loss"
    """Metric of the silos' evaluation, as the strategy averages it, that tells which round is best;
    used by `checkpoint.keep_best` and `early_stop.patience`."""
    best_is: str = "lowest"
    """Which value of `best_metric` is the best: one of `DIRECTIONS`."""
    round_timeout: float = 3600.0
    """Seconds after which a round goes on without the silos that have not answered."""
    evaluate_initial: bool = True
    """Whether the silos evaluate once before the first round."""
    baseline_alone: bool = False
    """Whether each silo also trains alone, from the same start and for as many rounds."""
    sample_prompt: str = ""
    """Prompt that is continued through the split before and after training; empty for none."""

    def __post_init__(self) -> None:
        at_least("num-server-rounds", self.num_server_rounds, 1)
        at_least("seed", self.seed, 0)
        one_of("best-is", self.best_is, DIRECTIONS)
        in_range("round-timeout", self.round_timeout, 0.0, 1e7, open_low=True)
        found = conflicts(self)
        if found:
            raise ConfigError("\n".join(found))

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "SplitConfig":
        """The configuration that a Flower run config describes.

        Args:
            run_config: `context.run_config` of a ServerApp or ClientApp.

        Raises:
            ConfigError: with every problem of the run config at once, one a line.
        """
        from flower_split.config.run_config import read_run_config

        return read_run_config(run_config)
