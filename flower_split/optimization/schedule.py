"""Learning-rate schedules: a factor of the peak for every optimizer step of the whole run.

With w warm-up steps of n steps in all, step s (from 0) has the factor

- s / w while s < w, so that the first warm-up step has 0; after that, with
  p = (s - w) / (n - w), at most 1:
- `constant`: 1
- `linear`: 1 - p
- `cosine`: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)

which are those of `transformers.get_scheduler`.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flower_split.config.checks import at_least, one_of
from flower_split.config.sections import SCHEDULES
from flower_split.errors import ConfigError


def learning_rate_factor(
    step: int, *, schedule: str, warmup_steps: int = 0, total_steps: int
) -> float:
    """Factor of the peak learning rate at a step, between 0 and 1.

    Args:
        step: Optimizer step, from 0; from `total_steps` on, `linear` and `cosine` stay at 0.
        schedule: One of `SCHEDULES`.
        warmup_steps: Steps of linear warm-up, at most `total_steps`.
        total_steps: Optimizer steps of the whole run.

    Raises:
        ConfigError: an argument is out of its range.
    """
    check_schedule(schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, (total_steps - step) / decay_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def check_schedule(schedule: str, *, warmup_steps: int, total_steps: int) -> None:
    """Raise `ConfigError` where the arguments of a schedule contradict one another."""
    one_of("train.schedule", schedule, SCHEDULES)
    at_least("train.warmup-steps", warmup_steps, 0)
    at_least("total_steps", total_steps, 1)
    if warmup_steps > total_steps:
        raise ConfigError(
            f"train.warmup-steps is {warmup_steps}, more than the {total_steps} steps of the "
            "whole run"
        )


def make_scheduler(
    optimizer: Optimizer,
    *,
    schedule: str,
    warmup_steps: int = 0,
    total_steps: int,
    first_step: int = 0,
) -> LambdaLR:
    """A stock scheduler for an optimizer made with the peak rate; call its `step()` every step.

    Args:
        optimizer: Any; every parameter group follows from its own rate.
        schedule: One of `SCHEDULES`.
        warmup_steps: Steps of linear warm-up.
        total_steps: Optimizer steps of the whole run.
        first_step: Steps of the run that earlier rounds took.

    Raises:
        ConfigError: an argument is out of its range.
    """
    check_schedule(schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            first_step + step,
            schedule=schedule,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
        ),
    )
