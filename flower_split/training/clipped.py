"""The gradient of a step whose examples are clipped one by one, as DP-SGD takes it.

Every example has a loss of its own, the mean over its target tokens, so that how much one counts
does not depend on how long the others are.

Axes: B examples, T tokens, V the vocabulary or the labels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flower_split.adapters.prompts import tokens_before
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import DivergenceError
from flower_split.optimization.loss import IGNORED
from flower_split.training.batch import Batch, StepLoss, device_of, to_device
from flower_split.training.pipeline import run_pipeline
from flower_split.training.stages import Passage, Stages


def accumulate_clipped(
    model: nn.Module,
    microbatches: Sequence[Batch],
    *,
    stages: Stages,
    depth: int,
    task: str = CAUSAL_LM,
) -> StepLoss:
    """Add the clipped gradients of a step's examples to what the optimizer adds noise to.

    Args:
        model: A client model, in evaluation mode.
        microbatches: Those of the step; there may be none.
        stages: How `model` is called; they clip.
        depth: Microbatches in flight.
        task: What the model is for.

    Raises:
        DivergenceError: a microbatch's loss is not finite; its backward pass did not run.
    """
    device, before = device_of(model), tokens_before(model)
    total, tokens = 0.0, 0

    def start(batch: Batch) -> Passage:
        return stages.start({k: v for k, v in to_device(batch, device).items() if k != "labels"})

    def turn(batch: Batch, passage: Passage) -> None:
        nonlocal total, tokens
        labels = batch["labels"].to(device)
        losses, summed, count = example_losses(passage.output().logits, labels, task, before)
        if not math.isfinite(summed):
            raise DivergenceError(f"the loss of a microbatch is {summed}")
        passage.backward(losses.sum())
        total, tokens = total + summed, tokens + count

    waited = run_pipeline(microbatches, min(depth, stages.max_in_flight), start, turn)
    stages.note_waited(waited)
    return StepLoss(loss=total / max(tokens, 1), tokens=tokens, waited=waited)


def example_losses(
    logits: Tensor, labels: Tensor, task: str = CAUSAL_LM, before: int = 0
) -> tuple[Tensor, float, int]:
    """Every example's mean cross-entropy in nats, (B,) float32, 0 where it has no target; with the
    sum over all target tokens, and their number.

    Args:
        logits: (B, T, V); (B, V) where sequences are classified.
        labels: (B, T); (B,) where sequences are classified.
        task: What the model is for.
        before: Virtual tokens that the model puts before every row.
    """
    if task == CAUSAL_LM:  # position t predicts label t + 1
        labels = F.pad(labels, (before, 0), value=IGNORED)[:, 1:]
        logits = logits[:, :-1]
    targets = labels != IGNORED
    found = F.cross_entropy(logits[targets].float(), labels[targets], reduction="none")
    counts = targets.reshape(len(labels), -1).sum(1)
    owner = torch.arange(len(labels), device=labels.device).repeat_interleave(counts)
    summed = found.new_zeros(len(labels)).index_add(0, owner, found)
    return summed / counts.clamp(min=1), float(found.detach().sum()), int(counts.sum())
