"""Gradient accumulation: the gradient of a step's mean loss over its target tokens.

The loss of a step is the sum over the target tokens of all its microbatches, divided by their
number. So a step over several microbatches is one over their union, whatever their lengths are;
a mean of the microbatches' means would weigh the tokens of short ones more.
"""

import inspect
import math
from collections.abc import Sequence

import torch
from torch import nn

from flower_split.errors import DataError, DivergenceError
from flower_split.training.batch import Batch, count_targets, device_of, to_device


def accumulate(model: nn.Module, microbatches: Sequence[Batch]) -> tuple[float, int]:
    """Add the gradient of one optimizer step to the model's `.grad`s.

    Args:
        model: A stock causal language model, cut or whole, in training mode.
        microbatches: Those of the step, worked off one after the other.

    Returns:
        The step's mean loss in nats, and the number of its target tokens.

    Raises:
        DataError: no microbatch has a target token.
        DivergenceError: a microbatch's loss is not finite; its backward pass did not run.
    """
    counts = [count_targets(batch) for batch in microbatches]
    total = sum(counts)
    if total == 0:
        raise DataError("the batches of this step have no token with loss: all labels are -100")
    device = device_of(model)
    by_total = takes_num_items(model)
    loss_sum = 0.0
    for number, (batch, count) in enumerate(zip(microbatches, counts, strict=True), start=1):
        if count == 0:
            continue
        inputs = to_device(batch, device)
        if by_total:
            loss = model(
                **inputs, use_cache=False, num_items_in_batch=torch.tensor(total, device=device)
            ).loss
        else:
            loss = model(**inputs, use_cache=False).loss * (count / total)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(f"the loss of microbatch {number} of {len(counts)} is {value}")
        loss.backward()
        loss_sum += value
    return loss_sum, total


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
