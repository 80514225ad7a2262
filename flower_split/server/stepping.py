"""Optimizer steps on the trunk's adapters: a session's own, or the one that all sessions share.

A `federated` session steps its own adapter. A `shared` session computes with a replica of the
master adapter; its step applies its gradients to the master and refreshes the replica, as
split learning with a server-side model does (SplitFed V2, Thapa et al. 2022, arXiv:2004.12088).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from flower_split.adapters import AdapterRound, PersonalTensors, TrunkAdapters
from flower_split.optimization.moments import load_moments, read_moments
from flower_split.optimization.settings import OptimizerSettings


def adamw(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with the constants that both parties agreed on."""
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


class Stepper:
    """AdamW on one named adapter."""

    def __init__(self, adapters: TrunkAdapters, name: str, settings: OptimizerSettings) -> None:
        self._named = adapters.named_parameters(name)
        self.parameters = list(self._named.values())
        self._optimizer = adamw(self.parameters, settings)

    def step(self, gradients: Sequence[Tensor | None], learning_rate: float) -> None:
        """One step; a tensor without gradient is left as it is."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """CPU copies of the optimizer's state, named as in the uncut model."""
        return read_moments(self._optimizer, self._named)

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Resume from `moments`.

        Raises:
            StateError: they are not the state of an optimizer of this adapter.
        """
        load_moments(self._optimizer, self._named, moments)


class AdapterSlot:
    """The adapter that one session computes with, its gradients, and who steps it.

    Args:
        adapters: All adapters of the trunk.
        name: The session's adapter, already made.
        stepper: The session's own stepper, or the master's.
        begun: What the strategy asks of the session's own adapter; None where it is a replica of
            the master, of which nothing is sent, personal or corrected.
    """

    def __init__(
        self,
        adapters: TrunkAdapters,
        name: str,
        stepper: Stepper,
        *,
        begun: AdapterRound | None,
    ) -> None:
        self._adapters = adapters
        self.name = name
        self._stepper = stepper
        self._begun = begun
        self._all = list(adapters.named_parameters(name).values())
        self._trained = adapters.trained(name)
        self._gradients: list[Tensor | None] = [None] * len(self._trained)

    @property
    def can_mix(self) -> bool:
        """Whether rows of other sessions may be computed in one pass with this one's.

        Not where a second adapter lies beneath: a row has one adapter.
        """
        return self._adapters.mixer.possible and not self._adapters.has_folded(self.name)

    def activate(self) -> list[nn.Parameter]:
        """Compute with this adapter from now on; those of its tensors that are trained."""
        self._adapters.activate(self.name)
        return self._trained

    def mixed(
        self, slots: Sequence["AdapterSlot"], counts: Sequence[int]
    ) -> AbstractContextManager[None]:
        """Compute a batch with so many rows of each slot, one slot after the other, for a while."""
        for slot in slots:
            slot.trainable()
        spans = [(slot.name, rows) for slot, rows in zip(slots, counts, strict=True)]
        return self._adapters.mixer.rows(spans)

    def trainable(self) -> list[nn.Parameter]:
        """Those of its tensors that are trained, ready to have gradients."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
        return self._trained

    def accumulate(self, gradients: Sequence[Tensor | None]) -> None:
        """Add a microbatch's gradients, of the trained tensors, to those of the step."""
        for index, gradient in enumerate(gradients):
            total = self._gradients[index]
            if total is None or gradient is None:
                self._gradients[index] = gradient if total is None else total
            else:
                total.add_(gradient)

    def gather(self) -> list[nn.Parameter]:
        """The trained tensors with the step's corrected gradients as their `grad`."""
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient
        if self._begun is not None:
            self._begun.correct_gradients()
        return self._trained

    def step(self, learning_rate: float) -> None:
        """Apply and forget the gathered gradients."""
        self._stepper.step([parameter.grad for parameter in self._all], learning_rate)
        for parameter in self._all:
            parameter.grad = None
        self._gradients = [None] * len(self._trained)
        if self._begun is None:
            with torch.no_grad():
                for own, master in zip(self._all, self._stepper.parameters, strict=True):
                    own.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """A float32 CPU copy of the adapter."""
        return self._adapters.state(self.name)

    def sent(self) -> dict[str, Tensor]:
        """What goes into the silo's reply, float32 on the CPU."""
        return {} if self._begun is None else self._begun.sent()

    def personal(self) -> PersonalTensors:
        """What belongs to the silo alone, as the session leaves it."""
        return PersonalTensors() if self._begun is None else self._begun.personal()

    def moments(self) -> dict[str, Tensor]:
        """CPU copies of the session's own optimizer state; none where it steps the master's."""
        return {} if self._begun is None else self._stepper.moments()
