"""Evaluation: how well a model predicts the target tokens of held-out data."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from flower_split.adapters.prompts import tokens_before
from flower_split.config.tasks import CAUSAL, Task
from flower_split.errors import DataError, DivergenceError
from flower_split.optimization.label_counts import LabelCounts
from flower_split.optimization.loss import IGNORED
from flower_split.training.batch import Batch, device_of, to_device
from flower_split.training.metrics import EvalMetrics
from flower_split.training.pipeline import run_pipeline
from flower_split.training.stages import Passage, Stages, WholeModel, mode


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    stages: Stages | None = None,
    depth: int = 0,
    task: Task = CAUSAL,
) -> EvalMetrics:
    """Loss, perplexity and accuracy over all target tokens, however they are batched.

    The model is in evaluation mode meanwhile, and every module in its own mode afterwards.

    Args:
        model: A stock causal language model, cut or whole.
        batches: Held-out data.
        stages: How `model` is called; None calls it in one piece, one batch after the other.
        depth: Batches in flight; 0 for as many as `stages` can have. It changes no result.
        task: What the model is for.

    Raises:
        DataError: no batch has a target token.
        DivergenceError: the loss is not finite.
        TrunkError: something went wrong between the silo and the trunk.
    """
    stages = stages or WholeModel(model)
    device, before = device_of(model), tokens_before(model)
    loss_sum, correct, tokens, examples = 0.0, 0, 0, 0
    right, actual, predicted = torch.zeros(3, len(task.labels), dtype=torch.int64)

    def start(batch: Batch) -> Passage:
        return stages.start({k: v for k, v in to_device(batch, device).items() if k != "labels"})

    def turn(batch: Batch, passage: Passage) -> None:
        nonlocal loss_sum, correct, tokens, examples, right, actual, predicted
        labels, logits = batch["labels"].to(device), passage.output().logits
        examples += len(labels)
        if task == CAUSAL:  # position t predicts label t + 1
            labels = F.pad(labels, (before, 0), value=IGNORED)[:, 1:]
            logits = logits[:, :-1]
        targets = labels != IGNORED
        logits = logits[targets].float()  # only the rows that count are widened
        wanted, found = labels[targets], logits.argmax(-1)
        loss_sum += float(F.cross_entropy(logits, wanted, reduction="sum"))
        correct += int((found == wanted).sum())
        tokens += len(logits)
        if task.classifies:
            size = len(task.labels)
            right += wanted[found == wanted].bincount(minlength=size).cpu()
            actual += wanted.bincount(minlength=size).cpu()
            predicted += found.bincount(minlength=size).cpu()

    limit = stages.max_in_flight
    with mode(model, training=False):
        stages.note_waited(run_pipeline(batches, min(depth or limit, limit), start, turn))
    if tokens == 0:
        raise DataError("there is no target token to evaluate on")
    if not math.isfinite(loss_sum):
        raise DivergenceError(
            f"the loss over {examples} held-out examples is {loss_sum}: the model's weights or "
            "adapters are broken, or its training diverged"
        )
    return EvalMetrics(
        loss=loss_sum / tokens,
        token_accuracy=correct / tokens,
        tokens=tokens,
        examples=examples,
        labels=LabelCounts(
            right=tuple(right.tolist()),
            actual=tuple(actual.tolist()),
            predicted=tuple(predicted.tolist()),
        )
        if task.classifies
        else None,
    )
