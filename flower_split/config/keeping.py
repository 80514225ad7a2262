"""Keeping: the checkpoints of a run, which of them is the best, and when to stop early."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range

DIRECTIONS = ("lowest", "highest")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The run's state, saved after every round in the folder `checkpoints` of `output_dir`."""

    keep: int = 2
    """Last checkpoints that are kept; 0 writes none, as an empty `output_dir` does."""
    keep_best: bool = False
    """Whether the checkpoint of the best round, by `best_metric`, is kept besides."""

    def __post_init__(self) -> None:
        at_least("checkpoint.keep", self.keep, 0)


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """An end before the last round, when the silos' held-out data shows no more progress."""

    patience: int = 0
    """Rounds in a row without a better `best_metric` after which the run ends; 0 runs them all."""
    min_delta: float = 0.0
    """By how much `best_metric` must be better than the best before, to count as progress."""

    def __post_init__(self) -> None:
        at_least("early-stop.patience", self.patience, 0)
        in_range("early-stop.min-delta", self.min_delta, 0.0, 1e9)
