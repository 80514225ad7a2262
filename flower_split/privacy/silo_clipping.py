"""The silo's part of DP-SGD: whose gradient counts by how much, on both sides of the cut."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError
from flower_split.privacy.clipping import (
    ClippedSum,
    checked_squared_norms,
    clipping_factors,
)
from flower_split.privacy.row_gradients import RowGradients, RowRecord
from flower_split.privacy.settings import PrivacySettings


class Clipped:
    """One microbatch whose examples are clipped.

    Args:
        clipping: The silo's.
        record: Of the microbatch.
    """

    def __init__(self, clipping: "SiloClipping", record: RowRecord) -> None:
        self._clipping = clipping
        self._record = record

    def watching(self) -> AbstractContextManager[None]:
        """Forward passes are this microbatch's meanwhile."""
        return self._clipping.rows.recording(self._record)

    def differentiate(self, loss: Tensor, leaf: Tensor) -> None:
        """From the sum of the examples' losses, a scalar, to h2, which gets its gradient."""
        (leaf.grad,) = self._clipping.rows.differentiate([loss], [None], [leaf], self._record)

    def finish(
        self,
        sources: Sequence[Tensor],
        grads: Sequence[Tensor],
        at_trunk: Sequence[float] | None,
    ) -> tuple[float, ...]:
        """From h1 through the bottom, and into the step's sum; the examples' factors.

        Args:
            sources: Where that backward pass begins.
            grads: The gradients there.
            at_trunk: See `SiloClipping.clip`.

        Raises:
            WireError, DivergenceError: see `SiloClipping.clip`.
        """
        if sources:
            self._clipping.rows.differentiate(sources, grads, [], self._record)
        return self._clipping.clip(self._record, at_trunk)


def watching(clipped: Clipped | None) -> AbstractContextManager[None]:
    """The forward passes of a microbatch, where its examples are clipped."""
    return nullcontext() if clipped is None else clipped.watching()


class SiloClipping:
    """Clips the examples of one silo's session, and counts its steps.

    Args:
        model: The silo's.
        parameters: Those that it trains, in model order.
        settings: Of DP-SGD, as the trunk has them too.

    Raises:
        AdapterError: see `RowGradients`.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], settings: PrivacySettings
    ) -> None:
        self.settings = settings
        self.rows = RowGradients(model, parameters)
        self.steps = 0
        """Steps taken."""
        self.before_step: Callable[[], None] | None = None
        """Called before every step, and prevents it by raising."""
        self._sum = ClippedSum(self.rows.parameters, settings)
        self._left: list[Tensor] | None = None

    def begin(self, rows: int, device: torch.device) -> Clipped:
        """A microbatch of so many examples."""
        return Clipped(self, self.rows.record(rows, device))

    def clip(self, record: RowRecord, at_trunk: Sequence[float] | None) -> tuple[float, ...]:
        """Add a microbatch, clipped, to the step; the examples' factors, for the trunk to do alike.

        Args:
            record: What its backward pass gave here.
            at_trunk: Squared norms of the trunk's part, one for each example; None where it trains
                nothing.

        Raises:
            WireError: they are not one for each example, or out of range.
            DivergenceError: a gradient is not finite.
        """
        squared = record.squared_norms()
        if at_trunk is not None:
            squared += checked_squared_norms(at_trunk, record.rows)
        factors = clipping_factors(squared, self.settings.clip)
        self._sum.add(record, factors)
        return tuple(factors.tolist())

    def forget(self) -> None:
        """Begin the step anew."""
        self._sum.forget()

    def begin_step(self) -> None:
        """A step is about to be taken.

        Raises:
            AdapterError: a gradient came by another way than by clipping, or the tensors were
                changed by another way than by steps.
        """
        parameters = self.rows.parameters
        stray = sum(parameter.grad is not None for parameter in parameters)
        if stray:
            raise AdapterError(
                f"{stray} of the silo's tensors have gradients that were not clipped by example: "
                "in a session with DP-SGD (dp.noise) gradients come from session.accumulate() or "
                "flower_split.training.Accumulator alone, and not from loss.backward()"
            )
        self.check_unchanged()
        if self.before_step is not None:
            self.before_step()

    def place(self) -> None:
        """Give every parameter the step's gradient, with noise."""
        for parameter, gradient in zip(self.rows.parameters, self._sum.noisy_mean(), strict=True):
            parameter.grad = gradient

    def end_step(self) -> None:
        """The step was taken: its gradients are gone."""
        for parameter in self.rows.parameters:
            parameter.grad = None
        self.steps += 1
        self._left = [parameter.detach().clone() for parameter in self.rows.parameters]

    def check_unchanged(self) -> None:
        """Raise `AdapterError` where the trained tensors are not as the last step left them."""
        if self._left is None:
            self._left = [parameter.detach().clone() for parameter in self.rows.parameters]
        for parameter, left in zip(self.rows.parameters, self._left, strict=True):
            if not torch.equal(parameter.detach(), left):
                raise AdapterError(
                    "trained tensors of the silo were changed otherwise than by the optimizer's "
                    "steps, for which no guarantee of DP-SGD (dp.noise) is told: train them with "
                    "session.optimizer alone"
                )

    def close(self) -> None:
        """Watch the model no more; can be called twice."""
        self.rows.close()
