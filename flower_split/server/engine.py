"""The trunk engine: hosts sessions on one trunk, whatever wire they come over."""

import itertools
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import Tensor

from flower_split.adapters import AdapterPlan, TrunkAdapters
from flower_split.adapters.trunk_adapters import MASTER
from flower_split.config.checks import one_of
from flower_split.config.peft import ADALORA
from flower_split.config.sections import TRUNK_ADAPTERS, WireConfig
from flower_split.errors import ConfigError, HandshakeError, SequenceError
from flower_split.lowrank import Instructions, Scaling
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.segments import Trunk, held_by_trunk, layers_path
from flower_split.server.adapter_calls import AdapterCalls
from flower_split.server.border import TrunkBorder
from flower_split.server.compute.queue import BatchSettings, Computed, TrunkQueue
from flower_split.server.engine_common import EngineCommon
from flower_split.server.engine_work import EngineWork
from flower_split.server.handshake import check_prefix, check_wire
from flower_split.server.held_rows import HeldRows
from flower_split.server.session import TrunkSession
from flower_split.server.session_states import SiloState
from flower_split.server.session_terms import SessionTerms
from flower_split.server.snapshots import SnapshotStore
from flower_split.server.stepping import AdapterSlot
from flower_split.server.ticket_record import TicketRecord, TrunkStart
from flower_split.server.trunk_optimizers import TrunkOptimizers
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import SessionLimits, SessionSpec, Ticket


class TrunkEngine:
    """`TrunkBackend` on one trunk. The weights exist once, whatever the number of sessions.

    Args:
        trunk: The layers; its weights are frozen, and wrapped with adapters where there is a plan.
        plan: The whole model's adapter plan; None only for a frozen trunk.
        mode: `federated` (every session steps its own adapter), `shared` (all step one), or
            `frozen` (no adapter). Without a value: `federated` with a plan, else `frozen`.
        initial: The trunk's part of an adapter that sessions start from; without it, PEFT's
            initialisation.
        wire: Codecs and transforms that a session must use; None leaves the choice to the silo.
        optimizer: Constants that a session must use; None leaves the choice to the silo.
        privacy: Of DP-SGD, which a session must use; None leaves the choice to the silo.
        limits: What one session may hold.
        keep_optimizer: Whether a silo's session resumes from the optimizer state of its last one
            that counted, on both sides; needs silos with names and tickets.
        batching: How requests of several sessions are computed together; without it, each alone.
        pack: Digest of the pack that the silos' weights must be from; empty for their own.
        dtype: Of the silos' weights, in which tensors come and go, whatever the trunk's is; empty
            leaves it to the silo.
        shares_adapter: Whether a silo may read and write the trunk's part of its adapter.
        follows_autocast: Whether a trunk without autocast of its own computes under the silo's.
        snapshots: What silos have had kept of their adapters; in memory where not given.
        prefix_tokens: Tokens of the prefix that a session must have been opened with; None leaves
            it to the silo, 0 allows none. Only a frozen trunk takes one.
        turns: A context in which alone the trunk's device computes; see `TrunkQueue`.
        common: What it has in common with engines of other cuts on the same weights; then a start
            that was prepared may hold tensors of further layers, which are theirs.

    Raises:
        ConfigError: mode and plan contradict each other, or a codec or transform of `wire` is of no
            use.
        AdapterError: the plan or `initial` does not fit the trunk.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        plan: AdapterPlan | None = None,
        mode: str | None = None,
        initial: Mapping[str, Tensor] | None = None,
        wire: WireConfig | None = None,
        optimizer: OptimizerSettings | None = None,
        privacy: PrivacySettings | None = None,
        limits: SessionLimits | None = None,
        keep_optimizer: bool = False,
        batching: BatchSettings | None = None,
        pack: str = "",
        dtype: str = "",
        shares_adapter: bool = False,
        follows_autocast: bool = True,
        snapshots: SnapshotStore | None = None,
        prefix_tokens: int | None = None,
        turns: AbstractContextManager[object] | None = None,
        common: EngineCommon | None = None,
    ) -> None:
        self.mode = mode or ("frozen" if plan is None else "federated")
        one_of("trunk.adapters", self.mode, TRUNK_ADAPTERS)
        if self.mode != "frozen" and trunk.loaded_adapter:
            raise ConfigError(
                "a trunk with a loaded adapter is frozen: to train on, give its tensors as initial="
            )
        if self.mode != "frozen" and plan is None:
            raise ConfigError(f"trunk.adapters {self.mode!r} needs an adapter plan; pass plan=")
        self.trunk = trunk
        self.plan = None if self.mode == "frozen" else plan
        self.limits = limits or SessionLimits()
        if wire is not None:
            check_wire(wire)
        self._terms = SessionTerms(
            fingerprint=trunk.fingerprint,
            cuts=trunk.cuts,
            weights_dtype=str(trunk.dtype).removeprefix("torch."),
            mode=self.mode,
            plan=self.plan,
            wire=wire,
            optimizer=optimizer,
            privacy=privacy,
            pack=pack,
            dtype=dtype,
            loaded_adapter=trunk.loaded_adapter,
            prefix_tokens=prefix_tokens,
        )
        self._numbers = itertools.count()
        self._common = common
        self._path = "" if common is None else layers_path(trunk.model)
        shared = common or EngineCommon(budget=None)
        self._records = shared.records
        self.names = shared.names
        trunk.requires_grad_(False)
        self._adapters = None if self.plan is None else TrunkAdapters(trunk, self.plan)
        self.queue = TrunkQueue(trunk, batching or BatchSettings(), turns, shared.budget)
        self._lock = self.queue.exclusive()
        self._follows_autocast = follows_autocast
        self._snapshots = snapshots or shared.snapshots
        if self.mode == "shared" and self.plan is not None and self.plan.method == ADALORA:
            raise ConfigError(
                "AdaLoRA masks by the importances of one silo, and a shared trunk has one adapter "
                "for all: use mode 'federated' or 'frozen'"
            )
        if shares_adapter and self.plan is not None and not self.plan.is_plain:
            raise ConfigError(
                f"a trunk shares an adapter of plain LoRA only, and this is {self.plan.described}: "
                "leave shares_adapter (trunk.shares-adapter) off"
            )
        if shares_adapter and self._adapters is not None:
            elements = sum(math.prod(shape) for _, shape in self.held)
            self.limits = replace(self.limits, max_adapter_elements=elements)
        self._optimizers = TrunkOptimizers(
            self._adapters,
            shared=self.mode == "shared",
            keep=keep_optimizer,
            states=shared.states,
            cuts=None if common is None else trunk.cuts,
        )
        if self._adapters is not None and initial is not None:
            self._adapters.load(MASTER, initial)

    @property
    def held(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name in the uncut model and shape of the master adapter's tensors, in model order."""
        if self._adapters is None:
            return ()
        named = self._adapters.named_parameters(MASTER)
        return tuple((name, tuple(parameter.shape)) for name, parameter in named.items())

    @property
    def waiting(self) -> int:
        """Passes that wait now; to look at, and nobody waits for the look."""
        return self.queue.waiting

    @property
    def computed(self) -> Computed:
        """What was computed so far."""
        return self.queue.computed

    def describe(self, purpose: str = "train") -> SessionSpec:
        """The specification that a session of this engine must bring."""
        return self._terms.describe(purpose)

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> Future[BackendSession]:
        """A session with an adapter of its own.

        It starts from what `prepare` was given for the ticket. Without a ticket that was prepared
        it starts from the master adapter, and what it has trained ends with it, unless `shared`.
        The future fails with a `HandshakeError` that names the field in which the two parties
        differ, or when another node has the silo's name, and with a `SequenceError` when the
        ticket's session was opened before.
        """
        return self.queue.call(lambda: self._open(spec, ticket))

    def _open(self, spec: SessionSpec, ticket: Ticket | None) -> BackendSession:
        """In the queue's thread, which holds the trunk to itself."""
        prepared = None if ticket is None else self._records.get(ticket.token)
        record = prepared or TicketRecord()
        start = record.start()
        scaling = self._terms.check(spec, None if start is None else start.allowance)
        width = check_prefix(spec, self.trunk, self.limits) if spec.prefix_tokens else 0
        border = TrunkBorder(self.trunk, spec)
        instructions = Instructions() if start is None else start.instructions
        if ticket is not None and spec.silo:
            self._optimizers.forget(self.names.claim(spec.silo, ticket.node_id))
        resumed = self._optimizers.resumed(spec, ticket, instructions)
        slot = self._begin(spec, ticket, record, start, scaling, resumed).slot
        if prepared is None:
            record.discard()  # nobody will collect what it leaves
        return TrunkSession(
            self.trunk,
            spec,
            border,
            slot,
            self.limits,
            self.queue,
            record=record,
            resumed="" if resumed is None else resumed.tag,
            calls=None
            if slot is None
            else AdapterCalls(
                slot,
                self._snapshots,
                self.limits,
                silo=spec.silo,
                is_alone=self.queue.is_alone,
                trains=spec.purpose == "train",
            ),
            follows_autocast=self._follows_autocast,
            fixed_optimizer=self._terms.optimizer is not None,
            prefix_width=width,
        )

    def _begin(
        self,
        spec: SessionSpec,
        ticket: Ticket | None,
        record: TicketRecord,
        start: TrunkStart | None,
        scaling: Scaling | None,
        resumed: SiloState | None,
    ) -> EngineWork:
        """Make the session's adapter, and have `record` open with it."""
        work = EngineWork(
            ticket=ticket,
            spec=spec,
            scaling=scaling,
            instructions=Instructions() if start is None else start.instructions,
            slot=self._make_slot(spec, start, scaling, resumed),
            optimizers=self._optimizers,
        )
        try:
            record.open(work, spec.silo)
        except SequenceError:  # it was discarded meanwhile
            work.free()
            raise
        return work

    def prepare(self, ticket: Ticket, start: TrunkStart) -> TicketRecord:
        """The record of a new ticket, whose session is to start from `start`.

        Raises:
            SequenceError: the ticket was prepared before, and not discarded since.
        """
        record = TicketRecord(start)
        if self._records.setdefault(ticket.token, record) is not record:
            raise SequenceError("the ticket was prepared before: every session needs a new one")
        return record

    def accept(self, ticket: Ticket) -> None:
        """The silo's reply counts: its next session resumes from what this one has left.

        Raises:
            SequenceError: the ticket's outcome was not collected, or the ticket is not known.
        """
        with self._lock:
            record = self._records.get(ticket.token)
            if record is None:
                raise SequenceError("a ticket that was not prepared, or discarded, has no session")
            state = record.accept()
            if state is not None:
                self._optimizers.put(state)

    def discard(self, ticket: Ticket) -> None:
        """Forget what was prepared for or left by the ticket's session, or will yet be left."""
        record = self._records.pop(ticket.token, None)
        if record is not None:
            record.discard()

    def session_states(self) -> list[SiloState]:
        """Every state that the next round can resume from; see `TrunkOptimizers.states`."""
        with self._lock:
            return self._optimizers.states()

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """Resume from `states`, and from nothing that sessions have left or proposed so far.

        Raises:
            StateError: a state is not one of this trunk's adapters; nothing is changed then.
        """
        with self._lock:
            self._optimizers.load(states)
            for record in self._records.values():
                record.withdraw()

    def check_session_state(self, state: SiloState) -> None:
        """Raise `StateError` unless `state` is one of this trunk's adapters."""
        self._optimizers.check(state)

    def shared_state(self) -> dict[str, Tensor]:
        """The master adapter: what a `shared` trunk has learned so far."""
        with self._lock:
            return {} if self._adapters is None else self._adapters.state(MASTER)

    def load_shared_state(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the master adapter.

        Raises:
            AdapterError: `state` does not fit the trunk.
        """
        with self._lock:
            if self._adapters is not None:
                self._adapters.load(MASTER, state)

    def _make_slot(
        self,
        spec: SessionSpec,
        start: TrunkStart | None,
        scaling: Scaling | None,
        resumed: SiloState | None,
    ) -> AdapterSlot | None:
        if self._adapters is None:
            return None
        name = f"session{next(self._numbers)}"
        instructions = Instructions() if start is None else start.instructions
        begun = None
        if self.mode == "shared":
            self._adapters.add(name)
            self._adapters.freeze_parts(name, instructions.trains)
        else:
            received = self._adapters.state(MASTER) if start is None else self._own(start.tensors)
            begun = self._adapters.begin_round(
                name,
                instructions,
                received,
                scaling=scaling,
                personal=None if resumed is None else resumed.state.personal,
                trains=spec.purpose == "train",
            )
        slot = self._optimizers.slot(name, spec, resumed, scaling=scaling, begun=begun)
        if spec.privacy.is_on and spec.purpose == "train":
            slot.rows = self._held_rows(slot, spec)
        return slot

    def _own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of a start that are of this trunk's layers, where there are others."""
        if self._common is None:
            return tensors
        cuts = self.trunk.cuts
        return {n: tensor for n, tensor in tensors.items() if held_by_trunk(n, self._path, cuts)}

    def _held_rows(self, slot: AdapterSlot, spec: SessionSpec) -> HeldRows:
        try:
            return HeldRows(
                self.trunk.model,
                self.trunk.config,
                slot.trainable(),
                spec.privacy,
                self.limits,
            )
        except HandshakeError:
            slot.free()
            raise
