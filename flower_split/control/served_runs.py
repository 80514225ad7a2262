"""`ServedRuns`: the runs of a trunk service, which have one copy of the weights in common.

Each run has modules, adapters, optimizers, tickets and a queue of its own; what they share is the
weights, which nobody changes, and the devices, on each of which they take turns.
"""

import gc
import hashlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from flower_split.adapters import AdapterPlan
from flower_split.adapters.plan import PEFT_PREFIX
from flower_split.config.sections import SplitConfig
from flower_split.control.making_bound import LEAST_BYTES, MakingBound
from flower_split.control.patterns import check_patterns
from flower_split.control.run_bounds import RunBounds
from flower_split.control.served_model import ServedModel, located
from flower_split.control.served_run import BYTES_AN_ELEMENT, RunQuota, ServedRun
from flower_split.control.served_trunk import ServedTrunk
from flower_split.control.shares import has_place
from flower_split.delivery.pack import Pack
from flower_split.errors import (
    ConfigError,
    TrunkBusyError,
    TrunkRestartedError,
    TrunkUnavailableError,
)
from flower_split.server.compute.queue import Computed
from flower_split.server.grpc.delivery import PackSource
from flower_split.server.hosting.hosted_run import HostedRun
from flower_split.server.hosting.resolving import open_pack, resolve_run
from flower_split.server.hosting.run_trunk import SiloChannel
from flower_split.transport.messages import Ticket

logger = logging.getLogger(__name__)

LEASE_SECONDS = 90.0
"""After which a run whose strategy is not heard of any more is closed."""
FREE_SECONDS = 2.0
"""After which the sessions of a run that was closed have ended: their streams look every second."""


@dataclass(frozen=True, kw_only=True)
class ServiceFigures:
    """What a service has and has done, to look at."""

    runs: Sequence["RunFigures"]
    computed: Computed
    """Of all runs since the service began, those that are closed included."""
    opened: int
    """Runs that were opened since."""


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What an open run has and has done."""

    name: str
    sessions: int
    """That are open."""
    waiting: int
    """Passes that wait for their turn."""
    room: int
    """Bytes that it may yet have."""
    computed: Computed


class ServedRuns:
    """The runs of one service; `DataPort` serves them to silos, and `ControlService` to strategies.

    Args:
        trunk: Loaded.
        model: What it is.
        source: Where this machine finds the model.
        bounds: Of the runs.
        strategies: Thumbprints of the certificates by which strategies are known; each has its
            share of the bounds.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        trunk: ServedTrunk,
        model: ServedModel,
        source: str,
        bounds: RunBounds,
        *,
        strategies: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.bounds = bounds
        self.trunk = trunk
        self._source = source
        self._clock = clock
        self._strategies = frozenset(strategies)
        self._max_memory = bounds.max_memory or trunk.max_memory
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._runs: dict[bytes, ServedRun] = {}
        self._pending = Counter[str]()
        self._opened = 0
        self._computed = Computed()
        self._by_token: dict[bytes, ServedRun] = {}
        self._packs = ExitStack()
        self._pack: Pack | None = None
        self._draining = False
        self._closed = list[float]()
        """When runs were closed whose memory is not freed yet."""

    @property
    def all(self) -> list[ServedRun]:
        """The runs that are open."""
        with self._lock:
            return list(self._runs.values())

    @property
    def figures(self) -> ServiceFigures:
        """How it stands."""
        with self._lock:
            open_now, done, opened = list(self._runs.values()), self._computed, self._opened
        runs = [
            RunFigures(
                name=run.name,
                sessions=len(run.open_tokens),
                waiting=run.hosted.waiting,
                room=run.room,
                computed=run.hosted.computed,
            )
            for run in open_now
        ]
        return ServiceFigures(
            runs=runs, computed=sum((one.computed for one in runs), done), opened=opened
        )

    def open(self, config: SplitConfig, owner: str, channel: SiloChannel) -> ServedRun:
        """A new run; takes as long as its adapter takes to be initialised.

        Raises:
            HandshakeError: the service has another model, or other cuts.
            ConfigError: the run may not have what it asks for.
            TrunkBusyError: there are too many runs.
            TrunkUnavailableError: the service is being stopped.
            ModelError, AdapterError: as for a trunk in the strategy's process.
        """
        self.model.check(config)
        self._check_bounds(config)
        with self._lock:
            self._check_draining()
            held = self._pending + Counter(run.owner for run in self._runs.values())
            if not has_place(owner, held, self.bounds.max_runs, self._strategies):
                raise TrunkBusyError(
                    f"the service has {held.total()} runs, {held[owner]} of them this strategy's, "
                    f"and of {self.bounds.max_runs} keeps a part for each strategy: try later, or "
                    "raise its --max-runs"
                )
            self._pending[owner] += 1
        try:
            made = self._make(located(config, self._source), owner, channel)
        finally:
            with self._lock:
                self._pending[owner] -= 1
        told = config.trunk.adapters, config.trunk.max_sessions
        logger.info("run %s… is open: adapters %s, up to %d sessions", made.name, *told)
        return made

    def find(self, secret: bytes, owner: str) -> ServedRun:
        """The run of this secret, for whoever opened it.

        Raises:
            TrunkRestartedError: there is none, or it is another strategy's.
        """
        with self._lock:
            found = self._runs.get(secret)
        if found is None or not hmac.compare_digest(found.owner, owner):
            raise TrunkRestartedError(
                "the service knows nothing of this run: it was started anew, or has closed the run "
                f"because its strategy was not heard of for {LEASE_SECONDS:g} s"
            )
        found.touch()
        return found

    def close(self, run: ServedRun) -> None:
        """End every session of the run and forget it. Can be called twice."""
        with self._lock:
            known = self._runs.pop(run.secret, None)
            if known is not None:
                self._computed += known.hosted.computed
                self._closed.append(self._clock())
        run.close()
        if known is not None:
            logger.info("run %s… is closed", run.name)

    def expire(self) -> None:
        """Close the runs whose strategies are not heard of any more, and free what runs had."""
        now = self._clock()
        for run in self.all:
            if run.seen < now - LEASE_SECONDS and not run.calls:
                logger.warning("run %s… is left by its strategy", run.name)
                self.close(run)
        with self._lock:
            left = [closed for closed in self._closed if closed > now - FREE_SECONDS]
            is_due, self._closed = len(left) < len(self._closed), left
        if is_due:  # modules refer to one another, and Python counts objects, not a device's bytes
            gc.collect()

    def drain(self) -> None:
        """Take no further runs and invitations."""
        with self._lock:
            self._draining = True

    @property
    def is_draining(self) -> bool:
        """Whether it takes nothing new any more."""
        return self._draining

    def check_invites(self) -> None:
        """Raise `TrunkUnavailableError` where no silo is invited any more."""
        with self._lock:
            self._check_draining()

    def end(self) -> None:
        """Close all runs."""
        self.drain()
        for run in self.all:
            self.close(run)
        self._packs.close()

    def of(self, ticket: Ticket | None) -> ServedRun | None:
        """The run that a ticket was made for; None where it is none of any."""
        if ticket is None:
            return None
        with self._lock:
            return self._by_token.get(_digest(ticket))

    @property
    def pack(self) -> PackSource | None:
        """What is delivered to silos; None where no run has asked for it yet."""
        return self._pack

    def _make(self, config: SplitConfig, owner: str, channel: SiloChannel) -> ServedRun:
        with self._opening:
            pack = self._delivered(config)
            with self.trunk.nothing_computed():  # PEFT draws numbers, and may use the weights
                resolved = resolve_run(
                    config,
                    lambda *_: self.trunk.stages_of_run(),
                    making=MakingBound(self.bounds.max_bytes, self.bounds.opening),
                    check=self._check_plan,
                )
                hosted = HostedRun(config, resolved, pack=pack, turns=self.trunk.turns)
            hosted.serve_at(channel)
        run = ServedRun(
            secrets.token_bytes(32),
            owner,
            hosted,
            RunQuota(max_sessions=config.trunk.max_sessions, max_bytes=self.bounds.max_bytes),
            on_tickets=self._note_tickets,
            clock=self._clock,
        )
        with self._lock:
            self._check_draining()
            self._runs[run.secret] = run
            self._opened += 1
        return run

    def _delivered(self, config: SplitConfig) -> PackSource | None:
        if config.model.delivery == "server" and self._pack is None:
            pack = open_pack(config)
            if pack is not None:
                self._pack = self._packs.enter_context(pack)
        return self._pack if config.model.delivery == "server" else None

    def _check_bounds(self, config: SplitConfig) -> None:
        found = self.bounds.problems(config, max_memory=self._max_memory)
        named = config.peft.options.get("tokenizer_name_or_path", self.model.name)
        if named != self.model.name:
            found.append(
                "peft.tokenizer-name-or-path names another model than the run's, which a trunk "
                "service does not load: leave it out"
            )
        found += self.trunk.problems(config)
        if found:
            raise ConfigError("\n".join(found))
        check_patterns(config)

    def check_session(self, run: ServedRun) -> None:
        """Raise `TrunkBusyError` where a silo of the run can open no further session now."""
        run.check_session()
        held = Counter[str]()
        for other in self.all:
            held[other.owner] += len(other.open_tokens)
        if not has_place(run.owner, held, self.bounds.max_sessions, self._strategies):
            raise TrunkBusyError(
                f"{held.total()} sessions are open, {held[run.owner]} of them of this strategy's "
                f"runs, and of {self.bounds.max_sessions} the service keeps a part for each "
                "strategy. Try later, lower trunk.max-sessions, or raise the service's "
                "--max-sessions"
            )

    def _check_plan(self, plan: AdapterPlan, held: tuple[str, ...]) -> None:
        _check_given_away(plan, held)
        names = frozenset(held)
        elements = sum(math.prod(shape) for name, shape in plan.shapes if name in names)
        needed, most = BYTES_AN_ELEMENT * elements, self.bounds.max_bytes
        if needed > max(most, LEAST_BYTES):
            raise TrunkBusyError(
                f"a session of the run needs {needed / 2**30:.3g} GiB for the trunk's part of its "
                f"adapter, and the run's share of the trunk service's memory is "
                f"{most / 2**30:.3g}: lower lora.r, or raise the service's --run-gib"
            )

    def _check_draining(self) -> None:
        if self._draining:
            raise TrunkUnavailableError("the service is being stopped")

    def _note_tickets(self, run: ServedRun, tickets: tuple[Ticket, ...], good: bool) -> None:
        with self._lock:
            for ticket in tickets:
                if good:
                    self._by_token[_digest(ticket)] = run
                else:
                    self._by_token.pop(_digest(ticket), None)


def _check_given_away(plan: AdapterPlan, held: tuple[str, ...]) -> None:
    """Raise `ConfigError` where the strategy would be given weights, as the start of an adapter."""
    copied = tuple(f"{PEFT_PREFIX}{name}." for name in plan.copies)
    found = "LN_TUNING" if plan.method == "LN_TUNING" and held else ""
    if plan.changes_weights and held:
        found = f"init-lora-weights {dict(plan.options)['init_lora_weights']!r}"
    if any(name.startswith(copied) for name in held):
        found = "modules-to-save among the trunk's layers"
    if found:
        raise ConfigError(
            f"{found} begins with what the trunk's weights are, and a trunk service gives those to "
            "nobody: set trunk.adapters to 'frozen', or choose another method"
        )


def _digest(ticket: Ticket) -> bytes:
    return hashlib.sha256(ticket.token.encode("utf-8", "replace")).digest()
