"""The loop of local training: one silo's optimizer steps between two aggregations."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from flower_split.adapters import allocate_ranks
from flower_split.config.sections import TrainConfig
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import DataError, DivergenceError
from flower_split.optimization.schedule import check_schedule, learning_rate_factor
from flower_split.training.accumulation import Accumulator
from flower_split.training.batch import Batch, Batches, SampledBatches
from flower_split.training.metrics import TrainMetrics
from flower_split.training.stages import Stages, mode


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where a round stands after an optimizer step."""

    step: int
    """Steps taken in this round."""
    steps: int
    """Steps of the whole round."""
    loss: float
    """Mean cross-entropy of the step, in nats."""
    learning_rate: float


@runtime_checkable
class ClippingOptimizer(Protocol):
    """An optimizer that clips the gradient itself, because this side of the cut has not all."""

    grad_norm: float
    """Global norm before clipping, of the last step."""


def steps_in_round(config: TrainConfig, num_batches: int) -> int:
    """Optimizer steps of a round over data that makes `num_batches` microbatches.

    A pass ends with a step over fewer microbatches where `accumulation` does not divide them.
    """
    if config.local_steps:
        return config.local_steps
    return config.local_epochs * math.ceil(num_batches / config.accumulation)


def train_round(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    config: TrainConfig,
    *,
    stages: Stages | None = None,
    seed: int = 0,
    first_step: int = 0,
    total_steps: int | None = None,
    progress: Callable[[StepReport], None] | None = None,
    task: str = CAUSAL_LM,
) -> TrainMetrics:
    """Train for one round, in training mode; afterwards every module is in its mode again.

    Each step takes its learning rate from the schedule. The gradient is clipped here, over the
    model's trainable parameters, unless the optimizer is a `ClippingOptimizer`. The result is the
    same however many microbatches are in flight, see `Accumulator`; there are none at the end of a
    step, because the next one's bottom is the stepped one.

    Args:
        model: A stock causal language model, cut or whole.
        optimizer: One over the model's trainable parameters.
        batches: Microbatches of a pass, anew at every iteration; or data of which every step draws
            its examples, which `optimizer` and `stages` clip. The model is in evaluation mode then:
            dropout draws its masks for whole batches.
        config: The run's `train` section.
        stages: How `model` is called; None calls it in one piece, one microbatch after the other.
        seed: Of the random numbers.
        first_step: Optimizer steps of the run before this round, where the schedule resumes.
        total_steps: Optimizer steps of the whole run; None for those of this round.
        progress: Called after every step.
        task: What the model is for, one of `flower_split.config` `TASKS`.

    Raises:
        DataError: there are no batches, or a step without a token that has loss.
        DivergenceError: a loss or a gradient is not finite, naming the step.
        ConfigError: the warm-up is longer than the run.
        TrunkError: something went wrong between the silo and the trunk.
    """
    if len(batches) == 0:
        raise DataError("there are no batches to train on")
    steps = steps_in_round(config, len(batches))
    total = first_step + steps if total_steps is None else total_steps
    check_schedule(config.schedule, warmup_steps=config.warmup_steps, total_steps=total)
    start = time.perf_counter()
    loss_sum, tokens, examples, rate, waited = 0.0, 0, 0, 0.0, 0.0
    sampled = isinstance(batches, SampledBatches)
    gradients = Accumulator(
        model,
        stages=stages,
        in_flight=config.in_flight,
        seed=seed,
        first_step=first_step,
        task=task,
        clipped=sampled,
    )
    norms = list[float]()
    with mode(model, training=not sampled):
        for number, microbatches in enumerate(steps_of(batches, config.accumulation, steps)):
            rate = config.learning_rate * learning_rate_factor(
                first_step + number,
                schedule=config.schedule,
                warmup_steps=config.warmup_steps,
                total_steps=total,
            )
            try:
                optimizer.zero_grad(set_to_none=True)
                step = gradients.add(microbatches)
                norm = _step(model, optimizer, rate, config.max_grad_norm)
                allocate_ranks(model, first_step + number)
            except DivergenceError as exc:
                raise DivergenceError(
                    f"{exc}, at step {number + 1} of {steps} of this round (step "
                    f"{first_step + number + 1} of the run, learning rate {rate:g}). The training "
                    "diverged: lower train.learning-rate, or clip with train.max-grad-norm"
                ) from exc
            loss_sum += step.loss * step.tokens
            tokens += step.tokens
            waited += step.waited
            examples += sum(len(batch["labels"]) for batch in microbatches)
            if norm is not None:
                norms.append(norm)
            if progress is not None:
                progress(
                    StepReport(step=number + 1, steps=steps, loss=step.loss, learning_rate=rate)
                )
    return TrainMetrics(
        loss=loss_sum / max(tokens, 1),
        steps=steps,
        examples=examples,
        tokens=tokens,
        seconds=time.perf_counter() - start,
        waited=waited,
        learning_rate=rate,
        grad_norm=sum(norms) / len(norms) if norms else None,
    )


def steps_of(batches: Batches, accumulation: int, steps: int) -> Iterator[list[Batch]]:
    """The microbatches of every optimizer step, drawn where the data is sampled.

    Raises:
        DataError: see `step_batches`.
    """
    if isinstance(batches, SampledBatches):
        return (list[Batch](step) for step in batches.drawn(steps))
    return step_batches(batches, accumulation, steps)


def step_batches(batches: Batches, accumulation: int, steps: int) -> Iterator[list[Batch]]:
    """The microbatches of every optimizer step; no step reaches over the end of a pass.

    Args:
        batches: Microbatches of a pass, anew at every iteration.
        accumulation: Microbatches of a step, but for the last one of a pass.
        steps: Optimizer steps.

    Raises:
        DataError: there are no batches.
    """
    taken = 0
    while taken < steps:
        in_pass = iter(batches)
        before = taken
        while taken < steps and (microbatches := list(islice(in_pass, accumulation))):
            yield microbatches
            taken += 1
        if taken == before:
            raise DataError("the batches ran out: an iteration over them gave none")


def _step(
    model: nn.Module, optimizer: Optimizer, rate: float, max_grad_norm: float
) -> float | None:
    """Clip and step; returns the global gradient norm where it is known."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm: float | None = None
    if max_grad_norm > 0 and not isinstance(optimizer, ClippingOptimizer):
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norm = _finite(float(clip_grad_norm_(trainable, max_grad_norm)))
    optimizer.step()
    if max_grad_norm > 0 and isinstance(optimizer, ClippingOptimizer):
        norm = _finite(optimizer.grad_norm)
    return norm


def _finite(norm: float) -> float:
    if not math.isfinite(norm):
        raise DivergenceError(f"the gradient's norm is {norm}")
    return norm
