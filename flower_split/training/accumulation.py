"""Gradient accumulation: the gradient of a step's mean loss over its target tokens.

The loss of a step is the sum over the target tokens of all its microbatches, divided by their
number. So a step over several microbatches is one over their union, whatever their lengths are;
a mean of the microbatches' means would weigh the tokens of short ones more.
"""

import inspect
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from flower_split.adapters.prompts import tokens_before
from flower_split.config.seeds import derive_seed
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import DataError, DivergenceError
from flower_split.training.batch import Batch, StepLoss, count_targets, device_of, to_device
from flower_split.training.clipped import accumulate_clipped
from flower_split.training.depth import Depth
from flower_split.training.pipeline import run_pipeline
from flower_split.training.stages import Passage, Stages, WholeModel


class Accumulator:
    """The gradients of a round's optimizer steps, one step after the other.

    Every microbatch has random numbers of its own (for dropout), a function of the seed and of its
    place in the run. So the gradients are the same however many microbatches are in flight.

    Args:
        model: A stock causal language model, cut or whole, in training mode.
        stages: How `model` is called; None calls it in one piece, one microbatch after the other.
        in_flight: Microbatches in flight, at most those of a step and what `stages` can have; 0
            finds the number by measurement, see `Depth`.
        seed: Of the random numbers.
        first_step: Optimizer steps of the run before the first one here.
        task: What the model is for, one of `flower_split.config` `TASKS`.
        clipped: Whether the stages clip every example's gradient, as DP-SGD has it; the model is in
            evaluation mode then.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stages: Stages | None = None,
        in_flight: int = 0,
        seed: int = 0,
        first_step: int = 0,
        task: str = CAUSAL_LM,
        clipped: bool = False,
    ) -> None:
        self._task = task
        self._clipped = clipped
        self._model = model
        self._stages = stages or WholeModel(model)
        self._in_flight = in_flight
        self._seed = seed
        self._step = first_step
        self._full_step = 0
        self._depth: Depth | None = None

    def add(self, microbatches: Sequence[Batch]) -> StepLoss:
        """Add the gradient of the next optimizer step to the model's `.grad`s; see `accumulate`."""
        if self._depth is None:
            self._full_step = len(microbatches)
            most = self._stages.max_in_flight
            limit = most if self._clipped else min(most, self._full_step)
            self._depth = Depth(self._in_flight, limit)
        began = time.perf_counter()
        if self._clipped:
            self._step += 1
            return accumulate_clipped(
                self._model,
                microbatches,
                stages=self._stages,
                depth=self._depth.value,
                task=self._task,
            )
        step = accumulate(
            self._model,
            microbatches,
            stages=self._stages,
            depth=self._depth.value,
            seeds=[
                derive_seed(self._seed, "microbatch", self._step, place)
                for place in range(len(microbatches))
            ],
            task=self._task,
        )
        if len(microbatches) == self._full_step:
            self._depth.observe(
                tokens=sum(_positions(batch) for batch in microbatches),
                seconds=time.perf_counter() - began,
                waited=step.waited,
            )
        self._step += 1
        return step


def accumulate(
    model: nn.Module,
    microbatches: Sequence[Batch],
    *,
    stages: Stages | None = None,
    depth: int = 1,
    seeds: Sequence[int] | None = None,
    task: str = CAUSAL_LM,
) -> StepLoss:
    """Add the gradient of one optimizer step to the model's `.grad`s.

    Args:
        model: A stock causal language model, cut or whole, in training mode.
        microbatches: Those of the step. Gradients are added in their order, whatever the depth.
        stages: How `model` is called; None calls it in one piece.
        depth: Microbatches in flight; no more than `stages` can have are.
        seeds: Of every microbatch's random numbers; None draws the caller's, which makes dropout
            depend on the depth.
        task: What the model is for.

    Raises:
        DataError: no microbatch has a target token.
        DivergenceError: a microbatch's loss is not finite; its backward pass did not run.
    """
    before = tokens_before(model)
    counts = [count_targets(batch, task, before=before) for batch in microbatches]
    total = sum(counts)
    if total == 0:
        raise DataError("the batches of this step have no token with loss: all labels are -100")
    stages = stages or WholeModel(model)
    device = device_of(model)
    # Classifiers take `num_items_in_batch` by name or by none, and divide by it or not.
    by_total = task == CAUSAL_LM and takes_num_items(model)
    losses: list[float] = []

    def start(number: int) -> Passage:
        seed = None if seeds is None else seeds[number]
        return stages.start(to_device(microbatches[number], device), seed)

    def turn(number: int, passage: Passage) -> None:
        if by_total:
            loss = passage.output(num_items_in_batch=torch.tensor(total, device=device)).loss
        else:
            loss = passage.output().loss * (counts[number] / total)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss of microbatch {number + 1} of {len(counts)} is {value}"
            )
        passage.backward(loss)
        losses.append(value)

    numbers = [number for number, count in enumerate(counts) if count]
    waited = run_pipeline(numbers, min(depth, stages.max_in_flight), start, turn)
    stages.note_waited(waited)
    return StepLoss(loss=sum(losses), tokens=total, waited=waited)


def _positions(batch: Batch) -> int:
    return batch.get("input_ids", batch["labels"]).numel()


def takes_num_items(model: nn.Module) -> bool:
    """Whether the model divides its loss by a given `num_items_in_batch`.

    The rule is that of the stock `Trainer`, so that both compute the same.
    """
    get_base_model = getattr(model, "get_base_model", None)
    base = get_base_model() if callable(get_base_model) else model
    declared = getattr(base, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    parameters = inspect.signature(base.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
