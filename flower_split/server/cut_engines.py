"""`CutEngines`: one run's engines, one for every cut that a silo has come with.

A silo that holds more layers than another has a trunk of fewer. Each such span is a trunk of its
own on the same weights (`Trunk.narrowed`), with an engine of its own: what silos of one cut compute
is what a run of that cut alone computes, and rows of different spans never share a batch. The
engines take turns on the device, and have tickets, names and session states in common.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from flower_split.errors import HandshakeError, StateError
from flower_split.segments import Cuts, Trunk
from flower_split.server.compute.activation_budget import budget_of
from flower_split.server.compute.queue import Computed, mapped
from flower_split.server.compute.turns import DeviceTurns
from flower_split.server.engine import TrunkEngine
from flower_split.server.engine_common import EngineCommon
from flower_split.server.session_states import SiloState
from flower_split.server.silo_names import SiloNames
from flower_split.server.ticket_record import TicketRecord, TrunkStart
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import SessionLimits, SessionSpec, Ticket

logger = logging.getLogger(__name__)

MOST_IDLE = 8
"""Engines without a session that stay for the next one of their cut."""

MakeEngine = Callable[[Trunk, EngineCommon], TrunkEngine]


class CutEngines:
    """`TrunkBackend` for sessions of different cuts; `TrunkEngine` describes what it does.

    Args:
        trunk: Of all layers that any of the engines has; frozen, and wrapped with nothing.
        most: The cut of the silo that holds most layers; the trunk's own is that of the one that
            holds fewest.
        make: Makes the engine of a narrower trunk, which takes these turns.
        turns: A context in which alone the trunk's device computes. The caller may be in it.
        max_activation_tokens: Of all engines together, see `ActivationBudget`.

    Raises:
        CutError: `most` leaves no layer to the trunk.
        AdapterError, ConfigError: as `TrunkEngine`, of any of the cuts.
    """

    def __init__(
        self,
        trunk: Trunk,
        most: Cuts,
        make: MakeEngine,
        *,
        turns: DeviceTurns,
        max_activation_tokens: int = 0,
    ) -> None:
        trunk.requires_grad_(False)
        self._trunk = trunk
        self._most = most
        self._make = make
        self._turns = turns
        budget = budget_of(trunk, max_activation_tokens, turns, self._note_room)
        self._common = EngineCommon(budget=budget)
        self._lock = threading.Lock()  # of the engines; never held for long
        self._making = threading.Lock()
        self._engines: OrderedDict[Cuts, TrunkEngine] = OrderedDict()
        self._past = Computed()
        # Whatever does not fit the trunk's layers fits neither the most nor the fewest of them.
        self._engines[most] = self._made(most)
        self._widest = self._engines[trunk.cuts] = self._made(trunk.cuts)

    @property
    def limits(self) -> SessionLimits:
        """Of a session of any cut."""
        return self._widest.limits

    @property
    def names(self) -> SiloNames:
        """Of the silos, whatever their cuts."""
        return self._common.names

    @property
    def waiting(self) -> int:
        """Passes that wait now."""
        return sum(engine.queue.waiting for engine in self._held())

    @property
    def computed(self) -> Computed:
        """What was computed so far."""
        with self._lock:
            past, held = self._past, [*self._engines.values()]
        return sum((engine.queue.computed for engine in held), past)

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> Future[BackendSession]:
        """A session at the engine of its cut; see `TrunkEngine.open`. Never waits.

        The future fails with a `HandshakeError` too where the run leaves no silo such a cut.
        """
        opened: Future[BackendSession] = Future()
        try:
            cuts = self._cuts_of(spec)
        except HandshakeError as error:
            opened.set_exception(error)
            return opened
        with self._lock:
            found = self._engines.get(cuts)
            if found is not None:
                self._engines.move_to_end(cuts)
        if found is not None:
            return found.open(spec, ticket)
        # The modules are made once for each cut, which takes a moment on a large trunk.
        arguments = (cuts, spec, ticket, opened)
        threading.Thread(
            target=self._open_at, args=arguments, name="trunk-cut", daemon=True
        ).start()
        return opened

    def prepare(self, ticket: Ticket, start: TrunkStart) -> TicketRecord:
        """See `TrunkEngine.prepare`; `start` holds tensors of all layers of the widest trunk."""
        return self._widest.prepare(ticket, start)

    def accept(self, ticket: Ticket) -> None:
        """See `TrunkEngine.accept`."""
        with self._turns:
            self._widest.accept(ticket)

    def discard(self, ticket: Ticket) -> None:
        """See `TrunkEngine.discard`."""
        self._widest.discard(ticket)

    def session_states(self) -> list[SiloState]:
        """See `TrunkEngine.session_states`; each with the cut that it is of."""
        with self._turns:
            return self._widest.session_states()

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """See `TrunkEngine.load_session_states`.

        Raises:
            StateError: a state is not one of the adapters of its cut; nothing is changed then.
        """
        states = list(states)
        engines = [self._engine(self._cuts_of_state(state)) for state in states]
        with self._turns:
            for engine, state in zip(engines, states, strict=True):
                engine.check_session_state(state)
            self._common.states.replace(states)
            for record in [*self._common.records.values()]:
                record.withdraw()

    def shared_state(self) -> dict[str, Tensor]:
        """Nothing: engines of several cuts share no adapter."""
        return {}

    def load_shared_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is loaded, see `shared_state`."""

    def _cuts_of_state(self, state: SiloState) -> Cuts:
        try:
            bottom, top = state.cuts or (-1, -1)
            return self._within(bottom, top)
        except (HandshakeError, TypeError, ValueError) as error:
            raise StateError(
                f"what was kept for silo {state.silo!r} is of the cuts {state.cuts}, which silos "
                "of this run may not have"
            ) from error

    def _cuts_of(self, spec: SessionSpec) -> Cuts:
        return self._within(spec.bottom_layers, spec.top_layers)

    def _within(self, bottom: int, top: int) -> Cuts:
        fewest, most = self._trunk.cuts, self._most
        for name, chosen, least, bound in (
            ("bottom_layers", bottom, fewest.bottom_layers, most.bottom_layers),
            ("top_layers", top, fewest.top_layers, most.top_layers),
        ):
            if not least <= chosen <= bound:
                raise HandshakeError(
                    f"the silo and the trunk differ in {name}: silos of this run may hold {least} "
                    f"to {bound}, and the silo has {chosen}. Change it in the silo's node config, "
                    "and start both from the same run configuration"
                )
        return Cuts(bottom_layers=bottom, top_layers=top, num_layers=fewest.num_layers)

    def _open_at(
        self, cuts: Cuts, spec: SessionSpec, ticket: Ticket | None, opened: Future[Any]
    ) -> None:
        if not opened.set_running_or_notify_cancel():
            return

        def tell(done: Future[BackendSession]) -> None:
            error = done.exception()
            if error is None:
                opened.set_result(done.result())
            else:
                opened.set_exception(error)

        try:
            self._engine(cuts).open(spec, ticket).add_done_callback(tell)
        except Exception as error:
            opened.set_exception(mapped(error))

    def _engine(self, cuts: Cuts) -> TrunkEngine:
        """The engine of this cut, made where there is none."""
        with self._making:
            with self._lock:
                found = self._engines.get(cuts)
            if found is None:
                with self._turns:  # PEFT draws numbers
                    found = self._made(cuts)
                with self._lock:
                    self._engines[cuts] = found
                    self._drop_idle()
        return found

    def _made(self, cuts: Cuts) -> TrunkEngine:
        engine = self._make(self._trunk.narrowed(cuts), self._common)
        logger.debug(
            "a trunk for silos with %d bottom and %d top layers",
            cuts.bottom_layers,
            cuts.top_layers,
        )
        return engine

    def _drop_idle(self) -> None:
        """Forget the engines that were longest not asked for, but for those of the bounds."""
        stay = (self._trunk.cuts, self._most)
        idle = [c for c, e in self._engines.items() if c not in stay and e.queue.is_idle]
        for cuts in idle[: -MOST_IDLE or None]:
            self._past += self._engines.pop(cuts).queue.computed

    def _note_room(self) -> None:
        """What one engine freed, another one's pass may wait for."""
        for engine in self._held():
            engine.queue.look_again()

    def _held(self) -> list[TrunkEngine]:
        with self._lock:
            return [*self._engines.values()]
