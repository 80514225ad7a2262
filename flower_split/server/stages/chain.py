"""The chain of stages: one trunk whose contiguous layers compute apart, one after the other.

Segments are exact wherever a model is cut, so that stages one after the other compute what one
trunk computes, to the bit; adapters are named by layer, so that each stage steps its own part. What
concerns the whole trunk is done here: whom a session is for and on which terms, the norm by which a
step is clipped, and what sessions leave, which is put together and kept apart from the stages.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from flower_split.adapters.state import check_state
from flower_split.config.peft import ADALORA
from flower_split.errors import (
    ConfigError,
    HandshakeError,
    SequenceError,
)
from flower_split.lowrank import Instructions, Scaling
from flower_split.privacy import PrivacySettings
from flower_split.server.adapter_calls import AdapterCalls
from flower_split.server.border import TrunkBorder
from flower_split.server.compute.queue import Computed
from flower_split.server.handshake import check_prefix_size, check_takes_prefix
from flower_split.server.session_states import SiloState
from flower_split.server.session_terms import SessionTerms
from flower_split.server.silo_names import SiloNames
from flower_split.server.snapshots import SnapshotStore
from flower_split.server.stages.chain_session import ChainSession
from flower_split.server.stages.chain_slot import ChainSlot
from flower_split.server.stages.chain_terms import ChainTerms
from flower_split.server.stages.futures import gathered, in_thread
from flower_split.server.stages.messages import StageOutcome
from flower_split.server.stages.parts import StageParts, one_state, together
from flower_split.server.stages.replicas import Replicas, close_all
from flower_split.server.stages.stage import P, Stage, StageSession
from flower_split.server.stages.ticket_records import TicketRecords
from flower_split.server.ticket_record import SessionOutcome, TicketRecord, TrunkStart
from flower_split.server.trunk_optimizers import TrunkOptimizers
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import (
    SessionLimits,
    SessionSpec,
    SessionSummary,
    Ticket,
)


@dataclass(frozen=True, kw_only=True)
class StagePlace:
    """Where tensors enter a stage, or leave it."""

    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class ChainModel:
    """What a chain must know of its model."""

    layers_path: str
    model_type: str
    hidden_size: int
    context_length: int
    """0 where the model knows none."""
    entry: StagePlace
    """Where h1 is brought: the first stage's device, and the weights' dtype."""
    exit: StagePlace
    """Where g2 is brought: the last stage's."""


class Chain(Generic[P]):
    """`TrunkBackend` on stages, with what a `HostedRun` asks of its engine.

    A session is placed on one of the trunk's replicas: the one with the fewest sessions of those
    that answer. What it resumes from is kept here, so that its silo's next session can be on
    another.

    Args:
        replicas: Of the whole trunk, each its stages in the order of their layers.
        model: Whose layers they are.
        terms: Of every session.
        limits: What one session may hold, at every stage.
        keep_optimizer: Whether a silo's session resumes from the optimizer state of its last one
            that counted, on both sides.
        snapshots: What silos have had kept of their adapters; in memory where not given.
        patience: Seconds for which stages that are gone are waited for.

    Raises:
        ConfigError: the chain cannot do exactly what is asked of it; says what can.
    """

    def __init__(
        self,
        replicas: Sequence[Sequence[Stage[P]]],
        model: ChainModel,
        terms: SessionTerms,
        *,
        limits: SessionLimits,
        keep_optimizer: bool = False,
        snapshots: SnapshotStore | None = None,
        patience: float = 0.0,
    ) -> None:
        check_chain_can(terms, replicas=len(replicas))
        self.mode = terms.mode
        self.limits = limits
        self.names = SiloNames()
        self._model = model
        self._terms = terms
        self._snapshots = snapshots or SnapshotStore()
        self._stages = list(replicas[0])
        """Of the one that has what all sessions have in common."""
        self._parts = StageParts([stage.layers for stage in self._stages], model.layers_path)
        self._replicas = Replicas(replicas, self._parts, terms.weights_dtype, patience=patience)
        self._placed: dict[str, int] = {}
        """Of every ticket that was prepared, the replica of its session."""
        self._records = TicketRecords()
        # It keeps the states of silos; a shared master's is the stages' own.
        self._optimizers = TrunkOptimizers(None, shared=False, keep=keep_optimizer)
        self._lock = threading.Lock()
        in_turn: AbstractContextManager[object] = nullcontext()
        if self.mode == "shared":
            # Two steps on the master must come in the same order at all stages.
            in_turn = threading.RLock()
        self._session_terms = ChainTerms(
            limits=limits,
            hidden_size=model.hidden_size,
            context_length=model.context_length,
            fixed_optimizer=terms.optimizer is not None,
            in_turn=in_turn,
        )

    def describe(self, purpose: str = "train") -> SessionSpec:
        """The specification that a session of this chain must bring."""
        return self._terms.describe(purpose)

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> Future[BackendSession]:
        """A session with a part at every stage; see `TrunkEngine.open`."""
        return in_thread(lambda: self._open(spec, ticket))

    def prepare(self, ticket: Ticket, start: TrunkStart) -> TicketRecord:
        """See `TrunkEngine.prepare`."""
        return self._records.prepare(ticket, start)

    def accept(self, ticket: Ticket) -> None:
        """See `TrunkEngine.accept`."""
        with self._lock:
            state = self._records.accept(ticket)
            if state is not None:
                self._optimizers.put(state)

    def discard(self, ticket: Ticket) -> None:
        """See `TrunkEngine.discard`."""
        self._records.discard(ticket)
        with self._lock:
            self._placed.pop(ticket.token, None)

    def confirm(self) -> None:
        """Wait until the trunk is there again, where silos have failed.

        Raises:
            TrunkRestartedError: every replica that a silo was placed on has lost its sessions.
            TrunkUnavailableError: the trunk has not come back in time.
        """
        with self._lock:
            used = set(self._placed.values())
        self._replicas.confirm(used)

    @property
    def replicas(self) -> list[list[Stage[P]]]:
        """The stages of each."""
        return self._replicas.all

    @property
    def loads(self) -> tuple[int, ...]:
        """Sessions that each replica has."""
        return self._replicas.loads

    def session_states(self) -> list[SiloState]:
        """See `TrunkEngine.session_states`."""
        with self._session_terms.in_turn:
            held = gathered([stage.common_states() for stage in self._stages]).result()
        common = one_state([state for states in held for state in states])
        with self._lock:
            return [*([] if common is None else [common]), *self._optimizers.states()]

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """See `TrunkEngine.load_session_states`."""
        states = list(states)
        split = [self._parts.state(state) for state in states]
        own = [[parts[number] for parts in split] for number in range(len(self._stages))]
        with self._session_terms.in_turn:
            for only_check in (True, False):
                loading = [
                    stage.load_states(part, only_check=only_check)
                    for stage, part in zip(self._stages, own, strict=True)
                ]
                gathered(loading).result()
        with self._lock:
            self._optimizers.replace(state for state in states if state.silo)
            self._records.withdraw()

    def shared_state(self) -> dict[str, Tensor]:
        """See `TrunkEngine.shared_state`."""
        with self._session_terms.in_turn:
            return together(gathered([stage.shared_state() for stage in self._stages]).result())

    def load_shared_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TrunkEngine.load_shared_state`."""
        held = dict(one for stage in self._stages for one in stage.held)
        if not held:
            return
        check_state(state, held)  # or one stage would have it, and another refuse it
        with self._session_terms.in_turn:
            split = self._parts.split(state)
            loading = [
                stage.load_shared_state(part)
                for stages in self._replicas.all
                for stage, part in zip(stages, split, strict=True)
                if stage.held
            ]
            gathered(loading).result()

    @property
    def waiting(self) -> int:
        """Passes that wait at any stage."""
        return sum(stage.waiting for stages in self._replicas.all for stage in stages)

    @property
    def computed(self) -> Computed:
        """What was computed so far: every pass once, with the seconds of all stages."""
        firsts = sum((stages[0].computed for stages in self._replicas.all), Computed())
        seconds = sum(stage.computed.seconds for stages in self._replicas.all for stage in stages)
        return replace(firsts, seconds=seconds)

    def _open(self, spec: SessionSpec, ticket: Ticket | None) -> BackendSession:
        prepared = self._records.find(ticket)
        record = prepared or TicketRecord()
        start = record.start()
        scaling = self._terms.check(spec, None if start is None else start.allowance)
        if spec.privacy.is_on and self.mode != "frozen":
            raise HandshakeError(f"privacy: {NO_ROWS}")
        width = self._prefix_width(spec)
        entry, exit_ = self._borders(spec)
        instructions = Instructions() if start is None else start.instructions
        with self._lock:
            if ticket is not None and spec.silo:
                self._optimizers.forget(self.names.claim(spec.silo, ticket.node_id))
            resumed = self._optimizers.resumed(spec, ticket, instructions)
        work = ChainWork(scaling=scaling, spec=spec)
        with self._session_terms.in_turn:
            at, sessions = self._replicas.place(spec, ticket, start, scaling, resumed)
        if ticket is not None and prepared is not None:
            with self._lock:
                self._placed[ticket.token] = at
        try:
            record.open(work, spec.silo)
        except SequenceError:  # it was discarded meanwhile
            self._replicas.note_end(at)
            close_all(sessions)
            if ticket is not None:
                self.discard(ticket)
            raise
        if prepared is None:
            record.discard()  # nobody will collect what it leaves
        return ChainSession(
            self._replicas.all[at],
            sessions,
            spec,
            entry,
            exit_,
            self._session_terms,
            record=record,
            resumed="" if resumed is None else resumed.tag,
            calls=self._calls(spec, sessions),
            prefix_width=width,
            leave=work.left.extend,
            on_end=partial(self._replicas.note_end, at),
        )

    def _borders(self, spec: SessionSpec) -> tuple[TrunkBorder, TrunkBorder]:
        entry = TrunkBorder(self._model.entry, spec)
        # A transform may remember at one cut what it does at the other.
        return entry, entry if spec.wire.transforms else TrunkBorder(self._model.exit, spec)

    def _calls(self, spec: SessionSpec, sessions: Sequence[StageSession[P]]) -> AdapterCalls | None:
        if self.mode == "frozen":
            return None
        return AdapterCalls(
            ChainSlot(sessions, self._parts, is_shared=self.mode == "shared"),
            self._snapshots,
            self.limits,
            silo=spec.silo,
            is_alone=self._is_alone,
            trains=spec.purpose == "train",
        )

    def _is_alone(self) -> bool:
        return sum(self._replicas.loads) <= 1

    def _prefix_width(self, spec: SessionSpec) -> int:
        if not spec.prefix_tokens:
            return 0
        check_takes_prefix(spec)
        widths = {stage.width for stage in self._stages}
        if len(widths) > 1 or 0 in widths:
            raise HandshakeError(
                f"prefix_tokens: the layers of this {self._model.model_type} trunk take no prefix: "
                "use prompt tuning"
            )
        width, layers = widths.pop(), len(self._terms.cuts.trunk_range)
        check_prefix_size(spec, self.limits, layers, width, self._model.hidden_size)
        return width


class ChainWork:
    """The `SessionWork` of one session: what its stages have left.

    Args:
        scaling: That the silo told.
        spec: Of the session.
    """

    def __init__(self, *, scaling: Scaling | None, spec: SessionSpec) -> None:
        self._scaling = scaling
        self._silo = spec.silo
        self.left: list[StageOutcome] = []
        """By every stage, once the session is finished."""

    def outcome(self, summary: SessionSummary) -> SessionOutcome:
        """See `SessionWork`."""
        return SessionOutcome(
            tensors=together(one.tensors for one in self.left),
            summary=summary,
            scaling=self._scaling,
            silo=self._silo,
        )

    def proposal(self, summary: SessionSummary) -> SiloState | None:
        """See `SessionWork`."""
        return one_state([one.proposal for one in self.left])

    def free(self) -> None:
        """See `SessionWork`."""
        self.left.clear()


NO_ROWS = (
    "a trunk of several stages does not tell gradients row by row (dp.noise): let one device hold "
    "the trunk, trunk.device in place of trunk.devices"
)


def check_chain_can(terms: SessionTerms, *, replicas: int = 1) -> None:
    """Raise `ConfigError` where a chain does not compute exactly what one trunk would."""
    if terms.mode == "frozen":
        return
    if terms.mode == "shared" and replicas > 1:
        raise ConfigError(
            "a shared trunk has one adapter that all sessions step, and replicas would have one "
            "each: set trunk.replicas to 1, or trunk.adapters to 'federated' or 'frozen'"
        )
    if terms.plan is not None and terms.plan.method == ADALORA:
        raise ConfigError(
            "AdaLoRA's term of the loss and its ranks are of all layers at once, and a trunk of "
            "several stages has some at each: set trunk.adapters to 'frozen', or let one device "
            "hold the trunk (trunk.device)"
        )
    if (terms.privacy or PrivacySettings()).is_on:
        raise ConfigError(NO_ROWS)
