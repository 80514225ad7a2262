"""A stage as its chain sees it: an actor of a Ray cluster.

Tensors go from one actor to the next as object references: what a stage has made is fetched by the
one that needs it, and never by this process, which sees h1 and g2 as they come and h2 and g1 as
they leave.
"""

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from torch import Tensor

from flower_split.errors import TrunkUnavailableError
from flower_split.server.cluster.cluster import import_ray
from flower_split.server.cluster.faults import meant
from flower_split.server.cluster.polled_figures import PolledFigures
from flower_split.server.cluster.stage_job import StageFacts, StageJob
from flower_split.server.compute.queue import Computed
from flower_split.server.session_states import SiloState
from flower_split.server.stages.futures import done, in_thread, running
from flower_split.server.stages.messages import (
    Passed,
    StageBackwardReply,
    StageOpening,
    StageRequest,
)
from flower_split.server.stages.stage import Held, StageSession
from flower_split.transport.messages import BackwardRequest, ForwardRequest

Reference = Any
"""`Passed`, or Ray's reference of one."""
LOOK_SECONDS = 2.0
"""Within which a stage answers that is not just being started."""


class RayStageSession:
    """`StageSession` of an actor.

    Args:
        stage: The actor's.
        name: By which it knows the session.
    """

    def __init__(self, stage: "RayStage", name: str) -> None:
        self._stage = stage
        self._actor = stage.actor
        self._name = name

    def forward(self, number: int, request: ForwardRequest, given: Reference) -> Reference:
        """See `StageSession`."""
        return self._actor.forward.remote(self._name, number, request, given)

    def backward(
        self, number: int, request: BackwardRequest, given: Reference
    ) -> tuple[Reference, Future[StageBackwardReply]]:
        """See `StageSession`."""
        called = self._actor.backward.options(num_returns=2)
        passed, side = called.remote(self._name, number, request, given)
        return passed, self._stage.answer(side)

    def ask(self, request: StageRequest) -> Future[Any]:
        """See `StageSession`."""
        return self._stage.answer(self._actor.ask.remote(self._name, request))

    def close(self) -> Future[None]:
        """See `StageSession`; a stage that is gone has nothing to free."""
        if self._stage.is_gone:
            self._actor.close.remote(self._name)  # and nobody waits for it to come back
            return done(None)
        closed = running()
        closing = self._stage.answer(self._actor.close.remote(self._name))
        closing.add_done_callback(lambda _: closed.set_result(None))
        return closed


class RayStage:
    """`Stage` of an actor.

    Args:
        actor: Ray's handle.
        job: What the actor loads, from now on and whenever Ray has made it anew.
        layers: Indices of the stage's.
        patience: Seconds for which it is waited for where it is gone.
    """

    def __init__(self, actor: Any, job: StageJob, layers: range, *, patience: float) -> None:
        self.actor = actor
        self._job = job
        self._begun: Reference | None = actor.load.remote(job)
        self._figures = PolledFigures(actor)
        self.layers = layers
        """See `Stage`, as all of these."""
        self.held: Held = ()
        """The same; known once it is loaded."""
        self.width = 0
        """Prefixes are refused."""
        self.facts: StageFacts | None = None
        """What it has told of itself last."""
        self._patience = patience
        self._ray = import_ray()
        self._lock = threading.Lock()
        self._is_gone = self._was_lost = False

    @property
    def is_gone(self) -> bool:
        """Whether it did not answer when it was last asked."""
        return self._is_gone

    @property
    def name(self) -> str:
        """In words."""
        return f"the trunk's stage of layers {self.layers.start} to {self.layers.stop - 1}"

    def load(self, seconds: float | None = None) -> StageFacts:
        """Wait until it is loaded.

        Raises:
            FlowerSplitError: it cannot be.
            TrunkUnavailableError: it does not answer within `seconds`.
        """
        try:
            facts = self._loaded(seconds)
        except self._ray.exceptions.GetTimeoutError as error:
            raise TrunkUnavailableError(
                f"{self.name} has not come back within {seconds:g} s"
            ) from error
        except Exception as error:
            raise meant(error, self.name) from error
        with self._lock:
            if self.facts is not None and self.facts.name != facts.name:
                self._was_lost = True
            self.facts, self.held = facts, facts.held
            self._is_gone = False
        return facts

    def _loaded(self, seconds: float | None) -> StageFacts:
        end = None if seconds is None else time.monotonic() + seconds
        begun, self._begun = self._begun, None
        told = self.actor.facts.remote() if begun is None else begun
        facts: StageFacts | None = self._ray.get(told, timeout=seconds)
        if facts is None:  # made anew
            left = None if end is None else max(0.1, end - time.monotonic())
            facts = self._ray.get(self.actor.load.remote(self._job), timeout=left)
        return facts

    @property
    def waiting(self) -> int:
        """As the actor told a moment ago."""
        return self._figures.waiting

    @property
    def computed(self) -> Computed:
        """The same; what a stage had computed that is gone counts as far as it had told."""
        return self._figures.computed

    def take_loss(self) -> bool:
        """See `Stage`; noticed as it is asked for something."""
        with self._lock:
            lost, self._was_lost = self._was_lost, False
            return lost

    def come_back(self, seconds: float) -> None:
        """Wait for a stage that is gone.

        Raises:
            TrunkUnavailableError: it did not come back within `seconds`.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.load(max(0.1, end - time.monotonic()))
            except TrunkUnavailableError:
                if time.monotonic() >= end:
                    raise
                time.sleep(min(0.5, seconds))
            else:
                return

    def answer(self, reference: Reference) -> Future[Any]:
        """What a call of the actor answers."""
        future = running()
        reference.future().add_done_callback(partial(self._settle, future))
        return future

    def lift(self, passed: Passed) -> Reference:
        """Ray takes it along."""
        return passed

    def land(self, passed: Reference) -> Future[Passed]:
        """It is fetched."""
        return self.answer(passed)

    def open(self, opening: StageOpening, *, waits: bool) -> Future[StageSession[Reference]]:
        """A session's part."""
        return in_thread(lambda: self._open(opening, self._patience if waits else LOOK_SECONDS))

    def shared_state(self) -> Future[dict[str, Tensor]]:
        """Its part of the master adapter."""
        return self.answer(self.actor.shared_state.remote())

    def load_shared_state(self, state: Mapping[str, Tensor]) -> Future[None]:
        """Overwrite it."""
        return self.answer(self.actor.load_shared_state.remote(dict(state)))

    def common_states(self) -> Future[list[SiloState]]:
        """There is nothing that sessions have in common."""
        return done([])

    def load_states(self, states: Sequence[SiloState], *, only_check: bool) -> Future[None]:
        """They are checked; every one comes with its session."""
        if not only_check or not states:
            return done(None)
        return in_thread(lambda: self._check(list(states)))

    def _open(self, opening: StageOpening, seconds: float) -> StageSession[Reference]:
        name = secrets.token_hex(16)
        if self._is_gone:
            self.come_back(seconds)
        try:
            self.answer(self.actor.open.remote(name, opening)).result()
        except TrunkUnavailableError:  # it has ended since anybody looked
            self.come_back(seconds)
            self.answer(self.actor.open.remote(name, opening)).result()
        return RayStageSession(self, name)

    def _check(self, states: list[SiloState]) -> None:
        self.come_back(self._patience)  # it may not have been seen since its replica was lost
        self.answer(self.actor.check_states.remote(states)).result()

    def _settle(self, future: Future[Any], made: "Future[Any]") -> None:
        error = made.exception()
        if error is None:
            future.set_result(made.result())
            return
        told = meant(error, self.name)
        if isinstance(told, TrunkUnavailableError):
            self._is_gone = True
        future.set_exception(told)
