"""Stages: how the loop calls a model whose pass may have to wait for another party on the way.

A microbatch passes a whole model in one piece. A cut one waits twice: after the bottom's forward
pass for h2, and after the top's backward pass for g1. What can be done meanwhile is another
microbatch's turn.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flower_split.devices import autocasting
from flower_split.segments import random_numbers
from flower_split.training.batch import device_of


class Passage(Protocol):
    """One microbatch on its way: `output`, `backward` where there are gradients, `finish`."""

    @property
    def awaited(self) -> Future[Any] | None:
        """What the next stage waits for; None where it can begin at once."""
        ...

    def output(self, **arguments: Any) -> Any:
        """The rest of the forward pass: what the stock model returns, called with `arguments`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward pass from `loss` to the cut behind which another party goes on."""
        ...

    def finish(self) -> None:
        """The rest of the backward pass."""
        ...

    def abandon(self) -> None:
        """Leave the passage where it is; never waits and never raises."""
        ...


class Stages(Protocol):
    """A model, called stage by stage."""

    @property
    def max_in_flight(self) -> int:
        """Microbatches that may be on their way at once."""
        ...

    def note_waited(self, seconds: float) -> None:
        """Take note of seconds in which there was nothing to do but to wait."""
        ...

    def start(self, inputs: Mapping[str, Tensor], seed: int | None = None) -> Passage:
        """The first stage of a microbatch's forward pass; does not wait.

        Args:
            inputs: As the stock model takes them, `labels` among them, on its device.
            seed: Of the pass's random numbers; None draws the caller's.
        """
        ...


class WholeModel:
    """A model that computes a microbatch without a pause.

    Args:
        model: A stock causal language model; a cut one blocks while it waits for its trunk.
        autocast: Dtype of its matrix products; None for that of its weights.
    """

    max_in_flight = 1

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None) -> None:
        self._model = model
        self._autocast = autocast

    def note_waited(self, seconds: float) -> None:
        """Does nothing: a whole model waits for no other party."""

    def start(self, inputs: Mapping[str, Tensor], seed: int | None = None) -> Passage:
        """Keep the inputs: everything is computed by `output`."""
        return _WholePassage(self._model, inputs, seed, self._autocast)


class _WholePassage:
    awaited: Future[Any] | None = None

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        seed: int | None,
        autocast: torch.dtype | None,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._seed = seed
        self._autocast = autocast

    def output(self, **arguments: Any) -> Any:
        device = device_of(self._model)
        with random_numbers(device, self._seed), autocasting(device, self._autocast):
            return self._model(**self._inputs, use_cache=False, **arguments)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the whole model into a mode and afterwards each module back into its own."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
