"""What a chain says to its stages, beside the passes and requests that a silo asks for itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from flower_split.lowrank import Scaling
from flower_split.segments.randomness import RandomState
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import (
    BackwardReply,
    Discard,
    DropCache,
    ForwardRequest,
    QueueUse,
    Release,
    SessionSpec,
    StepRequest,
    Ticket,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """What one stage passes on to the next."""

    tensor: Tensor | None
    """(B, T, H) as the layers made it: hidden states, or their gradient. None where no gradient is
    wanted."""
    drawn: RandomState | None = None
    """Where these layers have stopped drawing random numbers, in a forward pass with dropout."""

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process, as bytes that whoever takes it there need not copy."""
        return _unpacked, (None if self.tensor is None else _packed(self.tensor), self.drawn)


_Packed = tuple[str, tuple[int, ...], Any]


def _packed(tensor: Tensor) -> _Packed:
    """dtype, shape, and the elements' bytes as an array."""
    held = tensor.detach().cpu().contiguous()
    return str(held.dtype), tuple(held.shape), held.reshape(-1).view(torch.uint8).numpy()


def _unpacked(packed: _Packed | None, drawn: RandomState | None) -> Passed:
    if packed is None:
        return Passed(tensor=None, drawn=drawn)
    dtype, shape, elements = packed
    # A copy: what came may be memory that nobody may write to, as stock layers might.
    whole = torch.from_numpy(elements.copy()).view(getattr(torch, dtype.removeprefix("torch.")))
    return Passed(tensor=whole.reshape(shape), drawn=drawn)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageForward(ForwardRequest):
    """A forward pass of a stage that others come before."""

    drawn: RandomState | None = None
    """See `Passed`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StageBackwardReply(BackwardReply):
    """What a stage's backward pass gave."""

    norms: tuple[float, ...] = ()
    """Of the gradient of every tensor of the step so far, where it was to be measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StageOpening:
    """What a stage's part of a session begins with."""

    spec: SessionSpec
    """Of the session, with the stage's own cuts."""
    ticket: Ticket | None
    start: TrunkStart | None
    """With the stage's tensors alone; None for those of its master adapter."""
    scaling: Scaling | None
    """That the silo told."""
    resumed: SiloState | None
    """The stage's part of the state that the session resumes from."""


@dataclass(frozen=True, kw_only=True)
class BeginStep:
    """Gather the gradients of the step; answered by their norms."""

    request: StepRequest


@dataclass(frozen=True, kw_only=True)
class TakeStep:
    """Take the step that was begun."""

    request: StepRequest
    norms: Sequence[float]
    """Of all tensors of the uncut model's adapter."""


@dataclass(frozen=True, kw_only=True)
class UndoStep:
    """Take back the step that was begun or taken last, if any: another stage could not take it."""


@dataclass(frozen=True, kw_only=True)
class Retract:
    """A pass has failed at this stage or another: nobody waits for it, and the activations of a
    forward pass are freed."""

    kind: Literal["forward", "backward"]
    number: int
    """Among the passes of its kind."""
    microbatch: int


@dataclass(frozen=True, kw_only=True)
class ReadHeld:
    """Answered by name and shape of every tensor of the session's adapter."""


@dataclass(frozen=True, kw_only=True)
class ReadAdapter:
    """Answered by the session's adapter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteAdapter:
    """Overwrite the adapter that the session steps."""

    state: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class CopyAdapter:
    """Make a frozen copy of the session's adapter."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ReadMoments:
    """Answered by the state of the optimizer that steps the session's adapter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadMoments:
    """Have the optimizer go on from `moments`."""

    moments: Mapping[str, Tensor]
    only_check: bool = False


@dataclass(frozen=True, kw_only=True)
class FinishStage:
    """The session is complete; answered by what it leaves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StageOutcome:
    """What a stage's part of a finished session leaves."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    proposal: SiloState | None = None
    """What the silo's next session may resume from."""
    queue: QueueUse = field(default_factory=QueueUse)


StageCall = (
    BeginStep
    | TakeStep
    | UndoStep
    | Retract
    | ReadHeld
    | ReadAdapter
    | WriteAdapter
    | CopyAdapter
    | ReadMoments
    | LoadMoments
    | FinishStage
)
StageRequest = StageCall | Release | DropCache | Discard
"""What is asked of a stage in an open session, while no pass of the session is under way."""
