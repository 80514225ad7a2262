"""The trunk engine: hosts sessions on one trunk, whatever wire they come over."""

import itertools
import threading
from collections.abc import Mapping

from torch import Tensor

from flower_split.adapters import AdapterPlan, TrunkAdapters
from flower_split.adapters.trunk_adapters import MASTER
from flower_split.config.checks import one_of
from flower_split.config.sections import TRUNK_ADAPTERS, WireConfig
from flower_split.errors import ConfigError
from flower_split.lowrank import Allowance, Instructions, Scaling
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import Trunk
from flower_split.server.border import TrunkBorder
from flower_split.server.compute.queue import BatchSettings, TrunkQueue
from flower_split.server.handshake import check_spec, check_wire
from flower_split.server.session import TrunkSession
from flower_split.server.session_states import SessionState
from flower_split.server.silo_names import SiloNames
from flower_split.server.starting import SessionOutcome, TrunkStart
from flower_split.server.stepping import AdapterSlot
from flower_split.server.trunk_optimizers import TrunkOptimizers
from flower_split.transport.messages import SessionLimits, SessionSpec, SessionSummary, Ticket


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
        limits: What one session may hold.
        keep_optimizer: Whether a silo's session resumes from the optimizer state of its last one
            that counted, on both sides; needs silos with names and tickets.
        batching: How requests of several sessions are computed together; without it, each alone.
        pack: Digest of the pack that the silos' weights must be from; empty for their own.
        dtype: Of the silos' weights, in which tensors come and go, whatever the trunk's is; empty
            leaves it to the silo.

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
        limits: SessionLimits | None = None,
        keep_optimizer: bool = False,
        batching: BatchSettings | None = None,
        pack: str = "",
        dtype: str = "",
    ) -> None:
        self.mode = mode or ("frozen" if plan is None else "federated")
        one_of("trunk.adapters", self.mode, TRUNK_ADAPTERS)
        if self.mode != "frozen" and plan is None:
            raise ConfigError(f"trunk.adapters {self.mode!r} needs an adapter plan; pass plan=")
        self.trunk = trunk
        self.plan = None if self.mode == "frozen" else plan
        self.limits = limits or SessionLimits()
        if wire is not None:
            check_wire(wire)
        self._pack = pack
        self._dtype = dtype
        self._wire = wire
        self._optimizer = optimizer
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._prepared: dict[str, TrunkStart] = {}
        self._outcomes: dict[str, SessionOutcome] = {}
        self._awaited: set[str] = set()
        self._broken: set[str] = set()
        self.names = SiloNames()
        trunk.requires_grad_(False)
        self._adapters = None if self.plan is None else TrunkAdapters(trunk, self.plan)
        self.optimizers = TrunkOptimizers(
            self._adapters, shared=self.mode == "shared", keep=keep_optimizer, lock=self._lock
        )
        self._queue = TrunkQueue(trunk, batching or BatchSettings(), self._lock)
        if self._adapters is not None and initial is not None:
            self._adapters.load(MASTER, initial)

    def describe(self, purpose: str = "train") -> SessionSpec:
        """The specification that a session of this engine must bring."""
        cuts = self.trunk.cuts
        return SessionSpec(
            purpose="evaluate" if purpose == "evaluate" else "train",
            fingerprint=self.trunk.fingerprint,
            num_layers=cuts.num_layers,
            bottom_layers=cuts.bottom_layers,
            top_layers=cuts.top_layers,
            dtype=self._dtype or str(self.trunk.dtype).removeprefix("torch."),
            trunk_adapters=self.mode,
            adapter="" if self.plan is None else self.plan.json,
            wire=self._wire or WireConfig(),
            optimizer=self._optimizer or OptimizerSettings(),
            pack=self._pack,
        )

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> TrunkSession:
        """A session with an adapter of its own.

        It starts from what `prepare` was given for the ticket, or else from the master adapter.

        Raises:
            HandshakeError: naming the field in which the two parties differ, or another node has
                the silo's name.
        """
        key = "" if ticket is None else ticket.token
        with self._lock:
            start = self._prepared.get(key)
            scaling = self._check(spec, None if start is None else start.allowance)
            border = TrunkBorder(self.trunk, spec)
            instructions = Instructions() if start is None else start.instructions
            if ticket is not None and spec.silo:
                self.optimizers.forget(self.names.claim(spec.silo, ticket.node_id))
            resumed = self.optimizers.resumed(spec, ticket, instructions)
            slot = self._make_slot(spec, start, scaling, resumed)
            self._prepared.pop(key, None)
            self._awaited.add(key)

            def on_finish(summary: SessionSummary) -> None:
                if ticket is not None and key in self._awaited:
                    trained = slot is not None and spec.purpose == "train"
                    self._outcomes[key] = SessionOutcome(
                        tensors=slot.sent() if slot is not None and trained else {},
                        summary=summary,
                        scaling=scaling,
                    )
                    self.optimizers.propose(
                        ticket,
                        spec,
                        slot,
                        scaling=scaling,
                        instructions=instructions,
                        steps=summary.steps,
                    )

            freed = False

            def on_close() -> None:
                nonlocal freed
                if slot is not None and self._adapters is not None and not freed:
                    self._adapters.remove(slot.name)
                freed = True
                if key in self._awaited and key not in self._outcomes:
                    self._broken.add(key)
                self._awaited.discard(key)

            return TrunkSession(
                self.trunk,
                spec,
                border,
                slot,
                self.limits,
                self._queue,
                self._lock,
                on_finish=on_finish,
                on_close=on_close,
                resumed="" if resumed is None else resumed.tag,
            )

    def prepare(self, ticket: Ticket, start: TrunkStart) -> None:
        """What the ticket's session starts from and is to do."""
        with self._lock:
            self._prepared[ticket.token] = start

    def collect(self, ticket: Ticket) -> SessionOutcome | None:
        """What the ticket's session leaves, once; None unless it was finished."""
        with self._lock:
            self._prepared.pop(ticket.token, None)
            return self._outcomes.pop(ticket.token, None)

    def silo_of(self, ticket: Ticket) -> str:
        """The name under which the ticket's node opened its last session."""
        with self._lock:
            return self.names.of(ticket.node_id)

    def is_broken(self, ticket: Ticket) -> bool:
        """Whether the ticket's session ended without having been finished."""
        with self._lock:
            return ticket.token in self._broken

    def discard(self, ticket: Ticket) -> None:
        """Forget what was prepared for or left by the ticket's session, or will yet be left."""
        with self._lock:
            self._awaited.discard(ticket.token)
            self._broken.discard(ticket.token)
            self.optimizers.reject(ticket)
            self.collect(ticket)

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
        resumed: SessionState | None,
    ) -> AdapterSlot | None:
        if self._adapters is None or scaling is None:
            return None
        name = f"session{next(self._numbers)}"
        instructions = Instructions() if start is None else start.instructions
        begun = None
        if self.mode == "shared":
            self._adapters.add(name)
            self._adapters.freeze_parts(name, instructions.trains)
        else:
            received = self._adapters.state(MASTER) if start is None else start.tensors
            begun = self._adapters.begin_round(
                name,
                instructions,
                received,
                scaling=scaling,
                kept=None if resumed is None else resumed.kept,
                trains=spec.purpose == "train",
            )
        return self.optimizers.slot(name, spec, resumed, scaling=scaling, begun=begun)

    def _check(self, spec: SessionSpec, allowance: Allowance | None) -> Scaling | None:
        """The scaling that the silo tells, or `HandshakeError` when the two parties do not fit."""
        free = set[str]()
        if self._wire is None:
            free.add("wire")
        if self._optimizer is None:
            free.add("optimizer")
        if not self._dtype:
            free.add("dtype")
        return check_spec(self.describe(spec.purpose), spec, free=free, allowance=allowance)
