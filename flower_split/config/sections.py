"""The sections of a run's configuration: frozen, keyword-only, checked where they are made.

Field `learning_rate` of section `train` is the run-config key `train.learning-rate`;
`SplitConfig` holds them all and refuses those that contradict one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_split.config import conflicts
from flower_split.config.checks import at_least, in_range, one_of
from flower_split.config.data import DataConfig
from flower_split.config.keys import read_keys
from flower_split.config.model import (
    ATTENTION,
    AUTOCAST,
    DELIVERY,
    DTYPES,
    QUANTIZATIONS,
    CutConfig,
    LoraSettings,
    ModelConfig,
)
from flower_split.config.peft import PeftSettings
from flower_split.config.privacy import DpConfig
from flower_split.config.rounds import (
    DIRECTIONS,
    FILTERS,
    CheckpointConfig,
    EarlyStopConfig,
    StrategyConfig,
)
from flower_split.config.tasks import CLASSIFYING, TASKS
from flower_split.config.training import SCHEDULES, TrainConfig
from flower_split.config.trunk import TLS_MODES, TRUNK_ADAPTERS, TlsConfig, TrunkConfig
from flower_split.config.wire import CODECS, HOPS, WireConfig
from flower_split.errors import ConfigError

__all__ = [
    "ATTENTION",
    "AUTOCAST",
    "CODECS",
    "DELIVERY",
    "DIRECTIONS",
    "DTYPES",
    "FILTERS",
    "HOPS",
    "QUANTIZATIONS",
    "SCHEDULES",
    "TASKS",
    "TLS_MODES",
    "TRUNK_ADAPTERS",
    "CheckpointConfig",
    "CutConfig",
    "DataConfig",
    "DpConfig",
    "EarlyStopConfig",
    "LoraSettings",
    "ModelConfig",
    "PeftSettings",
    "SplitConfig",
    "StrategyConfig",
    "TlsConfig",
    "TrainConfig",
    "TrunkConfig",
    "WireConfig",
]

RUN_CONFIG = "the run config"
"""What errors call the table that a configuration is read from."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """A whole run's configuration."""

    model: ModelConfig
    split: CutConfig = field(default_factory=CutConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    peft: PeftSettings = field(default_factory=PeftSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    dp: DpConfig = field(default_factory=DpConfig)
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
    trackers: tuple[str, ...] = ()
    """Trackers of experiments that are told every round's scalars, by silo, through accelerate's
    integrations: `wandb`, `mlflow`, `trackio` and others whose package is installed on the server.
    Each is set up by its own environment variables, and is told no texts."""
    monitor: bool = False
    """Whether the server shows the run on a page, with `/metrics` and `/health`, at
    `monitor_address` while it goes on; needs the extra `monitor` on the server."""
    monitor_address: str = "127.0.0.1:8765"
    """Address of that page, its host and port; port 0 takes a free one. Others than loopback ask
    their readers for a token."""
    resume: bool = False
    """Whether the run resumes from the last checkpoint in `output_dir`, if there is one."""
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
    privacy_delta: float = 1e-5
    """δ of the guarantee of noise at the cuts, see [privacy.md](privacy.md): far below 1 over the
    number of those whose data it protects."""
    sample_prompt: str = ""
    """Prompt that is continued through the split before and after training; empty for none."""

    def __post_init__(self) -> None:
        if self.model.task in CLASSIFYING:
            object.__setattr__(self, "peft", self.peft.with_heads())
        at_least("num-server-rounds", self.num_server_rounds, 1)
        at_least("seed", self.seed, 0)
        in_range("seed", self.seed, 0, 2**63 - 1)
        one_of("best-is", self.best_is, DIRECTIONS)
        steps = self.train.local_steps * self.num_server_rounds
        object.__setattr__(self, "peft", self.peft.scheduled(steps))
        in_range("privacy-delta", self.privacy_delta, 0.0, 0.1, open_low=True)
        in_range("round-timeout", self.round_timeout, 0.0, 1e7, open_low=True)
        found = [
            *conflicts.of_bounds(self.train, self.trunk),
            *conflicts.of_quantization(self.model, self.trunk),
            *conflicts.of_cuts(self.split, self.trunk),
            *conflicts.of_task(self.model, self.data, self.sample_prompt),
            *conflicts.of_packing(self.data, self.peft),
            *self.dp.conflicts(
                model=self.model,
                lora=self.lora,
                peft=self.peft,
                train=self.train,
                trunk=self.trunk,
                data=self.data,
            ),
            *conflicts.of_address(self.trunk),
            *conflicts.of_tls(self.tls, self.trunk),
            *conflicts.of_service(self.trunk, self.tls),
            *conflicts.of_stages(self.split, self.trunk),
            *conflicts.of_devices(self.trunk, self.peft, self.dp),
            *conflicts.of_engine(self.trunk, self.peft, self.dp),
            *self._schedule_conflicts(),
            *conflicts.of_quorum(self.strategy),
            *(
                conflicts.of_central_privacy(self.strategy, self.trunk, self.checkpoint)
                if self.strategy.dp_noise
                else ()
            ),
            *self._output_conflicts(),
            *self._checkpoint_conflicts(),
        ]
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
        return read_keys(cls, run_config, where=RUN_CONFIG)

    def _schedule_conflicts(self) -> list[str]:
        steps = self.train.local_steps * self.num_server_rounds
        if 0 < steps < self.train.warmup_steps:
            return [
                f"train.warmup-steps is {self.train.warmup_steps}, more than the {steps} steps of "
                f"the whole run (num-server-rounds {self.num_server_rounds} x train.local-steps "
                f"{self.train.local_steps})"
            ]
        return []

    def _output_conflicts(self) -> list[str]:
        found = []
        if self.baseline_alone and self.trunk.adapters == "shared":
            found.append(
                "baseline-alone needs trunk adapters of every silo's own: set trunk.adapters to "
                "'federated' or 'frozen', not 'shared'"
            )
        if self.tensorboard and not self.output_dir:
            found.append(
                "tensorboard writes to a folder in output-dir, and output-dir is empty: set it, or "
                "set tensorboard to false"
            )
        found += conflicts.of_monitor(self.monitor, self.monitor_address, self.output_dir)
        if self.sample_prompt and self.strategy.fraction_evaluate == 0:
            found.append(
                "sample-prompt is continued when the silos evaluate, and "
                "strategy.fraction-evaluate is 0: raise it, or leave sample-prompt empty"
            )
        return found

    def _checkpoint_conflicts(self) -> list[str]:
        checkpoint, found = self.checkpoint, list[str]()
        writes = bool(self.output_dir) and checkpoint.keep > 0
        if self.resume and not writes:
            lacking = "checkpoint.keep is 0" if self.output_dir else "output-dir is empty"
            found.append(
                "resume takes up the checkpoints in output-dir and writes further ones there, and "
                f"{lacking}"
            )
        if checkpoint.keep_best and not writes:
            lacking = "checkpoint.keep is 0" if self.output_dir else "output-dir is empty"
            found.append(f"checkpoint.keep-best keeps a checkpoint, and {lacking}: none is written")
        if self.strategy.fraction_evaluate == 0:
            for key, used in (
                ("checkpoint.keep-best", checkpoint.keep_best),
                ("early-stop.patience", self.early_stop.patience > 0),
            ):
                if used:
                    found.append(
                        f"{key} goes by what the silos evaluate, and strategy.fraction-evaluate "
                        "is 0: raise it"
                    )
        if (checkpoint.keep_best or self.early_stop.patience) and not self.best_metric:
            found.append("best-metric is empty: name the metric that tells which round is the best")
        return found
