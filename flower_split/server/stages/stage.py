"""The interface of a stage: contiguous layers of a trunk, and the sessions' parts on them.

A chain's stages are all of one kind, which says in what form tensors go from one to the next: `P`.
A stage neither knows its neighbours nor waits for them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from torch import Tensor

from flower_split.server.compute.queue import Computed
from flower_split.server.session_states import SiloState
from flower_split.server.stages.messages import (
    Passed,
    StageBackwardReply,
    StageOpening,
    StageRequest,
)
from flower_split.transport.messages import BackwardRequest, ForwardRequest

P = TypeVar("P")
"""`Passed`, or what it will come from."""
Held = tuple[tuple[str, tuple[int, ...]], ...]
"""Name in the uncut model and shape of adapter tensors, in model order."""


class StageSession(Protocol[P]):
    """One session's part at one stage.

    Forward passes are numbered from 0, and so are backward passes. A stage computes each kind in
    the order of its numbers, one pass of the session at a time, as soon as what it is given is
    there. Whoever asks for a backward pass has the answer of its forward pass, and asks for
    anything but passes while none is under way.
    """

    def forward(self, number: int, request: ForwardRequest, given: P) -> P:
        """What leaves the layers, of `given` in place of `request.hidden`; never waits."""
        ...

    def backward(
        self, number: int, request: BackwardRequest, given: P
    ) -> "tuple[P, Future[StageBackwardReply]]":
        """The gradient at what entered the layers, of `given` in place of `request.grad`, and what
        else the pass gave; never waits."""
        ...

    def ask(self, request: StageRequest) -> "Future[Any]":
        """Answer anything else; see `messages`."""
        ...

    def close(self) -> "Future[None]":
        """Free everything; what is under way fails. Can be repeated."""
        ...


class Stage(Protocol[P]):
    """Contiguous layers of a trunk."""

    @property
    def layers(self) -> range:
        """Their indices."""
        ...

    @property
    def held(self) -> Held:
        """Of the adapter that all sessions start from; empty where the stage has none."""
        ...

    @property
    def width(self) -> int:
        """W of the keys that its layers keep; 0 where they take no prefix."""
        ...

    def lift(self, passed: Passed) -> P:
        """`passed` in the form in which a stage is given it."""
        ...

    def land(self, passed: P) -> Future[Passed]:
        """And back."""
        ...

    def open(self, opening: StageOpening, *, waits: bool) -> Future[StageSession[P]]:
        """A session's part.

        The future fails with a `TrunkUnavailableError` where the stage is gone: at once, or, if it
        `waits`, when it has not come back in time.
        """
        ...

    def take_loss(self) -> bool:
        """Whether it has ended, with its sessions, since this was last asked."""
        ...

    def come_back(self, seconds: float) -> None:
        """Wait for a stage that may be gone.

        Raises:
            TrunkUnavailableError: it did not come back within `seconds`.
        """
        ...

    def shared_state(self) -> Future[dict[str, Tensor]]:
        """Its part of the master adapter."""
        ...

    def load_shared_state(self, state: Mapping[str, Tensor]) -> Future[None]:
        """Overwrite it."""
        ...

    def common_states(self) -> Future[list[SiloState]]:
        """What all sessions of a `shared` trunk have in common, if there is any."""
        ...

    def load_states(self, states: Sequence[SiloState], *, only_check: bool) -> Future[None]:
        """Check the stage's parts of session states, and hold those that all sessions have in
        common; every other one comes with the session that resumes from it."""
        ...

    @property
    def waiting(self) -> int:
        """Passes that wait there."""
        ...

    @property
    def computed(self) -> Computed:
        """What it computed so far."""
        ...
