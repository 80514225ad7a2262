"""The replicas of a trunk: on which of them a session is placed, and whether they are there."""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Generic

from flower_split.config.wire import WireConfig
from flower_split.errors import TrunkRestartedError, TrunkUnavailableError
from flower_split.lowrank import Scaling
from flower_split.server.session_states import SiloState
from flower_split.server.stages.futures import gathered
from flower_split.server.stages.messages import StageOpening
from flower_split.server.stages.parts import StageParts
from flower_split.server.stages.stage import P, Stage, StageSession
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import SessionSpec, Ticket


class Replicas(Generic[P]):
    """Places sessions on the replica that has the fewest of those that answer.

    Args:
        replicas: Each its stages in the order of their layers.
        parts: Which stage holds what.
        weights_dtype: Of the trunk's weights.
        patience: Seconds for which stages that are gone are waited for.
    """

    def __init__(
        self,
        replicas: Sequence[Sequence[Stage[P]]],
        parts: StageParts,
        weights_dtype: str,
        *,
        patience: float,
    ) -> None:
        self.all = [list(stages) for stages in replicas]
        """Their stages."""
        self._parts = parts
        self._weights_dtype = weights_dtype
        self._patience = patience
        self._lock = threading.Lock()
        self._loads = [0 for _ in replicas]

    @property
    def loads(self) -> tuple[int, ...]:
        """Sessions that each replica has."""
        with self._lock:
            return tuple(self._loads)

    def place(
        self,
        spec: SessionSpec,
        ticket: Ticket | None,
        start: TrunkStart | None,
        scaling: Scaling | None,
        resumed: SiloState | None,
    ) -> tuple[int, list[StageSession[P]]]:
        """The number of a replica, and the session's part at each of its stages."""
        tried = set[int]()
        while True:
            with self._lock:
                at = min(
                    (number for number in range(len(self.all)) if number not in tried),
                    key=lambda number: (self._loads[number], number),
                )
                self._loads[at] += 1
            tried.add(at)
            last = len(tried) == len(self.all)
            try:
                return at, self._opened(
                    self.all[at], spec, ticket, start, scaling, resumed, waits=last
                )
            except BaseException as error:
                self.note_end(at)
                if last or not isinstance(error, TrunkUnavailableError):
                    raise

    def _opened(
        self,
        stages: Sequence[Stage[P]],
        spec: SessionSpec,
        ticket: Ticket | None,
        start: TrunkStart | None,
        scaling: Scaling | None,
        resumed: SiloState | None,
        *,
        waits: bool,
    ) -> list[StageSession[P]]:
        """The session's part at every stage, or at none."""
        starts = self._parts.start(start)
        states: Sequence[SiloState | None] = [None for _ in stages]
        if resumed is not None:
            states = self._parts.state(resumed)
        opening = [
            stage.open(
                StageOpening(
                    spec=self._stage_spec(spec, stage),
                    ticket=ticket,
                    start=starts[number],
                    scaling=scaling,
                    resumed=states[number],
                ),
                waits=waits,
            )
            for number, stage in enumerate(stages)
        ]
        errors = [one.exception() for one in opening]
        error = next((one for one in errors if one is not None), None)
        opened = [one.result() for one, wrong in zip(opening, errors, strict=True) if wrong is None]
        if error is not None:
            close_all(opened)
            raise error
        return opened

    def _stage_spec(self, spec: SessionSpec, stage: Stage[P]) -> SessionSpec:
        return replace(
            spec,
            bottom_layers=stage.layers.start,
            top_layers=spec.num_layers - stage.layers.stop,
            # The stage is given what the chain's own border lets in.
            wire=WireConfig(),
            dtype=self._weights_dtype,
            trunk_adapters=spec.trunk_adapters if stage.held else "frozen",
        )

    def note_end(self, replica: int) -> None:
        """A session that was placed there has ended."""
        with self._lock:
            self._loads[replica] -= 1

    def confirm(self, used: Collection[int]) -> None:
        """Wait until all stages of one replica at least are there, where sessions have failed.

        Args:
            used: Numbers of the replicas that the sessions were placed on.

        Raises:
            TrunkRestartedError: all of them have lost a stage since this was last asked, and their
                sessions with it.
            TrunkUnavailableError: none has come back in time.
        """
        lost = self._lost()
        self._await_one()
        # One that was not known to be gone is found out as it answers.
        lost = [one or other for one, other in zip(lost, self._lost(), strict=True)]
        if used and all(lost[number] for number in used):
            raise TrunkRestartedError("the trunk has lost a stage, which is there again")

    def _lost(self) -> list[bool]:
        return [sum(stage.take_loss() for stage in stages) > 0 for stages in self.all]

    def _await_one(self) -> None:
        end = time.monotonic() + self._patience
        error: TrunkUnavailableError | None = None
        for stages in self.all:
            try:
                for stage in stages:
                    stage.come_back(max(0.1, end - time.monotonic()))
            except TrunkUnavailableError as gone:
                error = gone
            else:
                return
        if error is not None:
            raise error


def close_all(sessions: Sequence[StageSession[Any]]) -> None:
    """Close a session's parts, and wait for it."""
    gathered([session.close() for session in sessions]).result()
