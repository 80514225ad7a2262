"""A session's optimizer step, in the parts that several stages of one trunk take together.

The global gradient norm is over the silo's tensors and all of the trunk's. Whoever holds the whole
trunk begins a step and takes it at once. Where the trunk is a chain of stages, all of them begin,
so that each can be told the norms of the others; then all take the step, or none.
"""

import math
from collections.abc import Callable, Sequence

from torch import nn

from flower_split.errors import SequenceError, WireError
from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    gradient_norms,
)
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.messages import SessionSpec, StepRequest


class SessionStep:
    """Takes the steps of one session, one after the other.

    Args:
        spec: What the handshake agreed on.
        slot: The session's adapter and optimizer; None for a frozen trunk.
        fixed: Whether a step's constants must be those of the handshake.
    """

    def __init__(self, spec: SessionSpec, slot: AdapterSlot | None, *, fixed: bool) -> None:
        self._spec = spec
        self._slot = slot
        self._fixed = fixed
        self._gathered: list[nn.Parameter] | None = None
        """Of a step that was begun and not taken."""

    def check(self, request: StepRequest) -> None:
        """Raise unless the silo may ask for this step.

        Raises:
            SequenceError: an evaluation makes none, or not one like this.
            WireError: the learning rate or a norm is out of bounds.
        """
        settings = self._spec.optimizer
        if self._spec.purpose != "train":
            raise SequenceError("an evaluation session makes no optimizer steps")
        settings.check_learning_rate(request.learning_rate)
        checked_norms(request.norms_before)
        checked_norms(request.norms_after)
        if request.constants not in (None, settings) and self._fixed:
            raise SequenceError(
                f"a step with {request.constants}, and this run's are {settings}: set "
                "train.weight-decay in the run config"
            )
        if self._spec.privacy.is_on and (
            request.keeps_gradient or (request.scale, request.clip) != (1.0, math.inf)
        ):
            raise SequenceError(
                "a step that scales, clips or keeps a gradient with noise (dp.noise): the noise "
                "is drawn for one step as it is"
            )

    def begin(self, request: StepRequest) -> tuple[float, ...]:
        """The norms of this trunk's gradients, as they will be stepped with; empty without clipping
        by the global norm.

        Raises:
            SequenceError: gradients by row were not weighed.
            WireError: a norm is out of bounds.
        """
        if self._slot is None:
            return ()
        self.take_back()
        self._gathered = self._slot.gather(request.scale, request.clip)
        if self._spec.optimizer.max_grad_norm <= 0:
            return ()
        try:
            return checked_norms(gradient_norms(self._gathered))
        except WireError:
            self.take_back()
            raise

    def take_back(self) -> None:
        """What was begun, and not taken, was not begun."""
        gathered, self._gathered = self._gathered, None
        if gathered is not None and self._slot is not None:
            self._slot.take_back()

    def take(self, request: StepRequest, norms: Sequence[float]) -> Callable[[], None]:
        """Clip by the global norm and step the adapter; what takes the step back, until the next.

        Args:
            request: Which `begin` was given.
            norms: Of all tensors of the uncut model's adapter.

        Raises:
            WireError: see `Stepper.step`; nothing was stepped.
        """
        if self._slot is None:
            return _nothing
        settings = self._spec.optimizer
        try:
            if settings.max_grad_norm > 0:
                clip_by_global_norm(self._gathered or (), norms, settings.max_grad_norm)
            undo = self._slot.step(
                request.learning_rate,
                request.constants or settings,
                keeps_gradient=request.keeps_gradient,
            )
        except WireError:
            self.take_back()
            raise
        self._gathered = None
        return undo


def _nothing() -> None:
    """Takes back no step."""
