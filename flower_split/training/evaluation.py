"""Evaluation: how well a model predicts the target tokens of held-out data."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from flower_split.errors import DataError, DivergenceError
from flower_split.training.batch import IGNORED, Batch, device_of, to_device
from flower_split.training.metrics import EvalMetrics
from flower_split.training.modes import mode


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> EvalMetrics:
    """Loss, perplexity and accuracy over all target tokens, however they are batched.

    The model is in evaluation mode meanwhile, and every module in its own mode afterwards.

    Args:
        model: A stock causal language model, cut or whole.
        batches: Held-out data.

    Raises:
        DataError: no batch has a target token.
        DivergenceError: the loss is not finite.
        TrunkError: something went wrong between the silo and the trunk.
    """
    device = device_of(model)
    loss_sum, correct, tokens, examples = 0.0, 0, 0, 0
    with mode(model, training=False):
        for batch in batches:
            inputs = to_device(batch, device)
            # Position t predicts label t + 1; only the rows of `logits` that count are widened.
            labels = inputs.pop("labels")[:, 1:]
            targets = labels != IGNORED
            logits = model(**inputs, use_cache=False).logits[:, :-1][targets].float()
            loss_sum += float(F.cross_entropy(logits, labels[targets], reduction="sum"))
            correct += int((logits.argmax(-1) == labels[targets]).sum())
            tokens += len(logits)
            examples += len(labels)
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
    )
