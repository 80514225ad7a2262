"""Training: the silo's local steps."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.config.model import AUTOCAST

SCHEDULES = ("constant", "linear", "cosine")
MAX_LEARNING_RATE = 1e3
"""Bound of any learning rate."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Local training between two aggregations."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    batch_size: int = 8
    """Sequences in a microbatch."""
    accumulation: int = 1
    """Microbatches in an optimizer step. Only they overlap: a `batch-size` of 2 with 4 of them has
    the gradient of 8 with 1, but for rounding, and waits less for the trunk."""
    in_flight: int = 0
    """Microbatches that a silo has on their way through the trunk at once, at most
    `accumulation`; 0 finds the number by measurement. It changes time and memory, no result."""
    autocast: str = "off"
    """Dtype of the silo's matrix products, whatever its weights are: one of `AUTOCAST`."""
    local_epochs: int = 1
    """Passes over the silo's data in a round; not used when `local_steps` is set."""
    local_steps: int = 0
    """Optimizer steps in a round; 0 takes `local_epochs` instead."""
    schedule: str = "constant"
    """Learning-rate schedule over the whole run: one of `SCHEDULES`."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up at the start of the run."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Bound of the global gradient norm over both sides of the cut; 0 does not clip."""
    keep_optimizer: bool = True
    """Whether AdamW's moments live on from round to round, on both sides; false starts every round
    with fresh ones (those of a `shared` trunk live on in any case)."""
    max_length: int = 1024
    """Tokens at which a sequence is cut off, or fewer where the model's context has less room."""
    eval_batch_size: int = 16
    """Sequences in an evaluation batch."""

    def __post_init__(self) -> None:
        in_range("train.learning-rate", self.learning_rate, 0.0, MAX_LEARNING_RATE)
        for name in ("batch_size", "accumulation", "local_epochs", "eval_batch_size"):
            at_least(f"train.{name.replace('_', '-')}", getattr(self, name), 1)
        at_least("train.in-flight", self.in_flight, 0)
        at_least("train.local-steps", self.local_steps, 0)
        at_least("train.warmup-steps", self.warmup_steps, 0)
        at_least("train.max-length", self.max_length, 2)
        one_of("train.autocast", self.autocast, AUTOCAST)
        one_of("train.schedule", self.schedule, SCHEDULES)
        in_range("train.weight-decay", self.weight_decay, 0.0, 1e3)
        in_range("train.max-grad-norm", self.max_grad_norm, 0.0, 1e9)
