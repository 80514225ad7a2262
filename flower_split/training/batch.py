"""Batches of token sequences, as the training loop takes them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flower_split.config.tasks import CAUSAL_LM
from flower_split.optimization.loss import IGNORED

Batch = Mapping[str, Tensor]
"""Keyword arguments of a stock model, with `labels` (B, T), -100 for no loss; or (B,), those of
sequences that are classified."""


class Batches(Protocol):
    """A pass over the data at every iteration, such as a `DataLoader` or a list of batches."""

    def __len__(self) -> int:
        """Number of batches in a pass."""

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """What the microbatches of an optimizer step came to."""

    loss: float
    """Mean cross-entropy in nats over the target tokens."""
    tokens: int
    """Target tokens of all microbatches: those with loss."""
    waited: float
    """Seconds in which there was nothing to do but to wait for the trunk."""


@runtime_checkable
class SampledBatches(Batches, Protocol):
    """Data of which every step draws its examples, for DP-SGD."""

    def drawn(self, steps: int) -> Iterator[list[dict[str, Tensor]]]:
        """The microbatches of so many steps; a step may have none."""
        ...


def count_targets(batch: Batch, task: str = CAUSAL_LM, *, before: int = 0) -> int:
    """Labels with loss. The first position of a causal model has none: nothing predicts it.

    Args:
        batch: With the labels.
        task: What the model is for.
        before: Virtual tokens that the model puts before every row, which have no loss.
    """
    labels = batch["labels"]
    if task == CAUSAL_LM and not before:
        labels = labels[:, 1:]
    return int((labels != IGNORED).sum())


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Copy of the batch with every tensor on `device`; tensors that are there are not copied."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
