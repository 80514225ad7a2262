"""A stage as a Ray actor: loads its own layers alone, and keeps what its sessions have there.

Its methods are coroutines of one event loop; the stage's engine computes in a thread of its own.
Ray may have them begin in another order than that in which they were called, because what one is
given can be there before what an earlier one is given. What must keep its order is put into it
here.
"""

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from flower_split.devices import autocast_dtype
from flower_split.errors import (
    FlowerSplitError,
    ModelError,
    TrunkUnavailableError,
)
from flower_split.segments import load_trunk
from flower_split.server.cluster.pass_turns import PassTurns
from flower_split.server.cluster.stage_job import StageFacts, StageFigures, StageJob
from flower_split.server.session_states import SiloState
from flower_split.server.stages.local_stage import differentiating, entering, side_of
from flower_split.server.stages.messages import (
    Passed,
    Retract,
    StageBackwardReply,
    StageOpening,
    StageRequest,
)
from flower_split.server.stages.stage_engine import StageEngine
from flower_split.server.stages.staged_session import StagedSession
from flower_split.transport.messages import BackwardRequest, ForwardRequest


class StageActor:
    """What Ray makes an actor of, and makes anew wherever there is room where it ends.

    It is told what to load by a call. What Ray itself would make it from could be lost with a
    machine, and the stage with it. One that is made anew has no layers yet, and no session.
    """

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._sessions: dict[str, _Part] = {}
        self._engine: StageEngine | None = None

    async def load(self, job: StageJob) -> StageFacts:
        """Load its layers, where it has none; it answers nothing else meanwhile.

        Raises:
            FlowerSplitError: why it cannot.
        """
        if self._engine is None:
            try:
                self._engine = _loaded(job)
            except FlowerSplitError:
                raise
            except Exception as error:
                kind = type(error).__name__
                raise ModelError(f"a stage could not be loaded: {kind}") from error
        return self._facts(self._engine)

    async def facts(self) -> StageFacts | None:
        """What it has loaded; None where it was just made."""
        return None if self._engine is None else self._facts(self._engine)

    async def figures(self) -> StageFigures:
        """What it has to do, and has done."""
        if self._engine is None:
            return StageFigures(name=self._name)
        return StageFigures(
            name=self._name, waiting=self._engine.waiting, computed=self._engine.computed
        )

    def _facts(self, engine: StageEngine) -> StageFacts:
        trunk, layers = engine.trunk, engine.layers
        return StageFacts(
            first_layer=layers.start,
            next_layer=layers.stop,
            held=engine.held,
            fingerprint=trunk.fingerprint,
            dtype=str(trunk.dtype).removeprefix("torch."),
            device=str(trunk.device),
            node=_node(),
            version=version("flower-split"),
            name=self._name,
            pid=os.getpid(),
        )

    async def open(self, name: str, opening: StageOpening) -> None:
        """The session's part, by whose name it is asked for."""
        session = await asyncio.wrap_future(self._loaded_engine().open_stage(opening))
        self._sessions[name] = _Part(session=session)

    async def forward(
        self, name: str, number: int, request: ForwardRequest, given: Passed
    ) -> Passed:
        """See `StageSession.forward`."""
        part = self._part(name)
        async with part.turns.turn("forward", number):
            answer = await asyncio.wrap_future(part.session.submit(entering(request, given)))
        return answer  # type: ignore[return-value]

    async def backward(
        self, name: str, number: int, request: BackwardRequest, given: Passed
    ) -> tuple[Passed, StageBackwardReply]:
        """See `StageSession.backward`."""
        part = self._part(name)
        async with part.turns.turn("backward", number):
            made = part.session.submit(differentiating(request, given))
            reply: Any = await asyncio.wrap_future(made)
        return Passed(tensor=reply.grad), side_of(reply)

    async def ask(self, name: str, request: StageRequest) -> Any:
        """See `StageSession.ask`."""
        part = self._part(name)
        if isinstance(request, Retract):
            await part.turns.skip(request.kind, request.number)
        session = part.session
        return await asyncio.wrap_future(session.submit(request))  # type: ignore[arg-type]

    async def close(self, name: str) -> None:
        """See `StageSession.close`."""
        part = self._sessions.pop(name, None)
        if part is not None:
            await part.turns.end()
            await asyncio.wrap_future(part.session.close())

    async def shared_state(self) -> dict[str, Tensor]:
        """Its part of the master adapter."""
        return self._loaded_engine().shared_state()

    async def load_shared_state(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite it."""
        self._loaded_engine().load_shared_state(state)

    async def check_states(self, states: Sequence[SiloState]) -> None:
        """See `StageEngine.check_states`."""
        self._loaded_engine().check_states(states)

    def _loaded_engine(self) -> StageEngine:
        if self._engine is None:
            raise TrunkUnavailableError(
                "a stage of the trunk has ended, and was started anew: it has no layers yet"
            )
        return self._engine

    def _part(self, name: str) -> "_Part":
        part = self._sessions.get(name)
        if part is None:
            raise TrunkUnavailableError(
                "the session is lost: a stage of the trunk has ended, and was started anew"
            )
        return part


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A session's part, and whose turn it is."""

    session: StagedSession
    turns: PassTurns = field(default_factory=PassTurns)


def _loaded(job: StageJob) -> StageEngine:
    torch.set_num_threads(job.threads)
    model, cuts = job.model, job.cuts
    trunk = load_trunk(
        model.name,
        bottom_layers=cuts.bottom_layers,
        top_layers=cuts.top_layers,
        revision=model.revision,
        dtype=job.dtype,
        attention=model.attention,
        device=job.device,
        quantization=model.quantization,
        task=model.as_task(),
    )
    trunk.autocast = autocast_dtype(job.autocast)
    return StageEngine(trunk, job.settings, is_last=job.is_last)


def _node() -> str:
    import ray

    find: Any = ray.util.get_node_ip_address
    return str(find())
