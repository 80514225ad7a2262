"""A stage in this process: its engine has a thread and a device of its own."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flower_split.server.compute.queue import Computed
from flower_split.server.session_states import SiloState
from flower_split.server.stages.futures import done, in_thread, then
from flower_split.server.stages.messages import (
    Passed,
    StageBackwardReply,
    StageForward,
    StageOpening,
    StageRequest,
)
from flower_split.server.stages.pass_order import PassOrder
from flower_split.server.stages.stage import Held, StageSession
from flower_split.server.stages.stage_engine import StageEngine
from flower_split.server.stages.staged_session import StagedSession
from flower_split.transport.messages import BackwardRequest, ForwardRequest

Coming = Future[Passed]
"""In what form tensors go from one stage of this process to the next."""


class LocalStageSession:
    """`StageSession` of a stage in this process."""

    def __init__(self, session: StagedSession) -> None:
        self._session = session
        self._order = PassOrder()

    def forward(self, number: int, request: ForwardRequest, given: Coming) -> Coming:
        """See `StageSession`; who comes first computes first, as its number says."""

        def start(passed: Passed) -> Future[Any]:
            return self._session.submit(entering(request, passed))

        return self._order.add(given, start)

    def backward(
        self, number: int, request: BackwardRequest, given: Coming
    ) -> tuple[Coming, Future[StageBackwardReply]]:
        """See `StageSession`."""

        def start(passed: Passed) -> Future[Any]:
            return self._session.submit(differentiating(request, passed))

        made = self._order.add(given, start)
        passed: Coming = then(made, lambda reply: Passed(tensor=reply.grad))
        return passed, then(made, side_of)

    def ask(self, request: StageRequest) -> Future[Any]:
        """See `StageSession`."""
        return self._session.submit(request)  # type: ignore[arg-type]

    def close(self) -> Future[None]:
        """See `StageSession`."""
        return self._session.close()


class LocalStage:
    """`Stage` of an engine in this process.

    Args:
        engine: The stage's own.
    """

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self.layers = engine.layers
        """See `Stage`, as all of these."""
        self.held: Held = engine.held
        """The same."""

    @property
    def width(self) -> int:
        """Found by a pass over one token."""
        return self._engine.key_width().result()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._engine.trunk.device

    def lift(self, passed: Passed) -> Coming:
        """It is there."""
        return done(passed)

    def land(self, passed: Coming) -> Future[Passed]:
        """It comes."""
        return passed

    def open(self, opening: StageOpening, *, waits: bool) -> Future[StageSession[Coming]]:
        """A session's part; it is always there."""
        return then(self._engine.open_stage(opening), LocalStageSession)

    def take_loss(self) -> bool:
        """It ends with its process only."""
        return False

    def come_back(self, seconds: float) -> None:
        """It is never gone."""

    def shared_state(self) -> Future[dict[str, Tensor]]:
        """Its part of the master adapter."""
        return in_thread(self._engine.shared_state)

    def load_shared_state(self, state: Mapping[str, Tensor]) -> Future[None]:
        """Overwrite it."""
        return in_thread(lambda: self._engine.load_shared_state(state))

    def common_states(self) -> Future[list[SiloState]]:
        """Of a `shared` trunk."""
        return in_thread(self._engine.session_states)

    def load_states(self, states: Sequence[SiloState], *, only_check: bool) -> Future[None]:
        """See `Stage`."""
        if only_check:
            return in_thread(lambda: self._engine.check_states(states))
        common = [state for state in states if not state.silo]
        return in_thread(lambda: self._engine.load_session_states(common))

    @property
    def waiting(self) -> int:
        """Passes that wait there."""
        return self._engine.waiting

    @property
    def computed(self) -> Computed:
        """What it computed so far."""
        return self._engine.computed


def entering(request: ForwardRequest, passed: Passed) -> ForwardRequest:
    """The request of a stage that is given `passed`."""
    if passed.tensor is None:
        raise TypeError("a forward pass is given hidden states")
    fields = {**vars(request), "hidden": passed.tensor, "drawn": passed.drawn}
    return StageForward(**fields)


def differentiating(request: BackwardRequest, passed: Passed) -> BackwardRequest:
    """The same of a backward pass."""
    if passed.tensor is None:
        raise TypeError("a backward pass is given a gradient")
    return replace(request, grad=passed.tensor)


def side_of(reply: Any) -> StageBackwardReply:
    """What a backward pass gave beside the gradient that goes on to another stage."""
    fields = {**vars(reply), "grad": None}
    return StageBackwardReply(**fields)
