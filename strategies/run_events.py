"""The events of a run: what the strategy tells of its rounds, silos and checkpoints as it goes.

Nothing here is called in the way of a step: the sessions are looked at when the strategy looks for
replies, at most four times a second, and no thread of the trunk waits for that.
"""

import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from flower_split.adapters import AdapterPlan
from flower_split.config.resuming import settings
from flower_split.config.sections import SplitConfig
from flower_split.reporting import installed_versions
from flower_split.reporting.events import EventLog
from flower_split.reporting.events.kinds import numbers
from flower_split.reporting.model_card import public_name
from flower_split.server.ticket_record import Stage
from flower_split.strategies.checkpoints.run_checkpoints import Reached
from flower_split.strategies.history import NodeRecord, SplitResult
from flower_split.strategies.hosting.invited_silo import SeenSession
from flower_split.strategies.hosting.replies import named
from flower_split.strategies.hosting.round_sessions import RoundSessions
from flower_split.transport.messages import Purpose

LOOK_SECONDS = 0.25
"""Seconds between two looks at the sessions, at least."""
GAUGE_SECONDS = 5.0
"""Seconds between two events `gauges`."""
MOST_SILOS = 64
"""Silos whose progress an event `gauges` has."""
UNTOLD = (
    *("data.eval-path", "data.path", "data.template", "model.name", "output-dir", "sample-prompt"),
    *("tls.ca", "tls.certificate", "tls.client-ca", "tls.private-key"),
)
"""Keys whose values are texts, or files of the server."""
BROKE_OFF = "its session at the trunk broke off"
NOT_CONNECTED = "its SuperNode is no longer connected"

_BEGAN = {Stage.OPEN, Stage.FINISHED, Stage.BROKEN, Stage.COLLECTED, Stage.ACCEPTED}
_FINISHED = {Stage.FINISHED, Stage.COLLECTED, Stage.ACCEPTED}


class WatchedHost(Protocol):
    """What is told of the host of the trunk."""

    @property
    def plan(self) -> AdapterPlan:
        """The plan of the adapter that the run yields."""
        ...

    @property
    def parameters(self) -> int:
        """Parameters of the uncut model."""
        ...

    @property
    def waiting(self) -> int:
        """Passes that wait at the trunk now."""
        ...


def told_settings(config: SplitConfig) -> dict[str, Any]:
    """The run config's keys and values that may be told: without `UNTOLD`."""
    return {key: value for key, value in settings(config).items() if key not in UNTOLD}


class RunEvents:
    """Tells the events of one `SplitStrategy`.

    Args:
        log: Where they are told; None tells nobody.
        alone: Whether they are of the baseline, in which every silo trains alone.
    """

    def __init__(self, log: EventLog | None, *, alone: bool = False) -> None:
        self._log = log
        self._alone = alone
        self._present: dict[str, int] = {}
        self._told: dict[int, set[str]] = {}
        self._gauged = self._looked = 0.0
        self._last: dict[str, Any] = {}

    def begun(
        self, config: SplitConfig, host: WatchedHost, num_rounds: int, next_round: int
    ) -> None:
        """The run has begun, or goes on with `next_round`."""
        if self._log is None:
            return
        self._present = {}
        if self._alone:
            self._tell("baseline-begun", rounds=num_rounds, next_round=next_round)
            return
        self._tell(
            "run-begun",
            rounds=num_rounds,
            next_round=next_round,
            model=public_name(config.model.name),
            parameters=host.parameters,
            bottom_layers=config.split.bottom_layers,
            top_layers=config.split.top_layers,
            method=host.plan.described or f"LoRA r = {host.plan.r}, alpha = {host.plan.alpha:g}",
            modules=len(host.plan.modules),
            trunk_adapters=config.trunk.adapters,
            strategy=config.strategy.name,
            config=told_settings(config),
            versions=installed_versions(),
        )

    def round_begun(self, server_round: int, num_rounds: int) -> None:
        """A round has begun; 0 is the evaluation before the first."""
        self._tell("round-begun", round=server_round, rounds=num_rounds)

    def round_ended(self, result: SplitResult, server_round: int) -> None:
        """A round has ended."""
        self._tell("round-ended", round=server_round, seconds=result.seconds.get(server_round, 0.0))

    def connected(self, nodes: Collection[int], names: Mapping[int, str]) -> None:
        """These nodes are connected: whoever took part and is none of them has left."""
        now = {names[node] for node in nodes if node in names}
        for silo in [*self._present]:
            if silo not in now and self._present[silo] not in nodes:
                del self._present[silo]
                self._tell("silo-left", silo=silo, why=NOT_CONNECTED)

    def exchange_begun(self, sessions: RoundSessions, asked: int) -> None:
        """So many silos are asked to train, or to evaluate."""
        self._told = {}
        terms = sessions.terms
        self._tell("exchange-begun", round=terms.server_round, purpose=terms.purpose, asked=asked)

    def look(self, sessions: RoundSessions, host: WatchedHost) -> None:
        """Tell what the silos' sessions have come to since the last look."""
        if self._log is None:
            return
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        seen = sessions.seen()
        self._tell_sessions(sessions, seen)
        if now - self._gauged >= GAUGE_SECONDS:
            self._gauged = now
            self._tell_gauges(seen, host.waiting)

    def exchange_ended(self, sessions: RoundSessions, seconds: float) -> None:
        """What came of every silo that was asked."""
        if self._log is None:
            return
        seen = sessions.seen()
        self._tell_sessions(sessions, seen)
        for record in sessions.history():
            self._tell_record(record, seen[record.node_id].silo)
        if sessions.sample:
            self._tell("sample-written", round=sessions.terms.server_round)
        self._last = {
            "counted": sessions.counted,
            "asked": len(sessions.records),
            "seconds": seconds,
        }

    def aggregated(
        self, purpose: Purpose, server_round: int, metrics: Mapping[str, Any] | None
    ) -> None:
        """What came of all silos together, in the exchange that ended last."""
        self._tell(
            "aggregated" if purpose == "train" else "evaluated",
            round=server_round,
            metrics=numbers(metrics or {}),
            **self._last,
        )

    def saved(self, what: Reached) -> None:
        """A checkpoint was written."""
        self._tell(
            "checkpoint-written",
            round=what.server_round,
            complete=what.complete,
            best=what.is_best,
        )

    def _tell_sessions(self, sessions: RoundSessions, seen: Mapping[int, SeenSession]) -> None:
        for node_id, session in seen.items():
            self._tell_session(sessions, node_id, session)

    def _tell_session(self, sessions: RoundSessions, node_id: int, session: SeenSession) -> None:
        told, silo = self._told.setdefault(node_id, set()), session.silo or f"node {node_id}"
        about = {
            "round": sessions.terms.server_round,
            "purpose": sessions.terms.purpose,
            "silo": silo,
        }
        if session.stage in _BEGAN and "began" not in told:
            told.add("began")
            if silo not in self._present:
                self._tell("silo-joined", silo=silo)
            self._present[silo] = node_id
            self._tell("silo-began", **about)
        if session.stage in _FINISHED and "ended" not in told:
            told.add("ended")
            self._tell("silo-finished", **about)
        if session.stage is Stage.BROKEN and "ended" not in told:
            told.add("ended")
            self._tell("silo-lost", **about, why=BROKE_OFF)

    def _tell_gauges(self, seen: Mapping[int, SeenSession], waiting: int) -> None:
        going = {
            session.silo or f"node {node_id}": summary
            for node_id, session in seen.items()
            if (summary := session.progress()) is not None
        }
        rows = sum(one.queue.rows for one in going.values())
        beside = sum(one.queue.rows_beside for one in going.values())
        self._tell(
            "gauges",
            sessions=len(going),
            waiting=waiting,
            occupancy=(rows + beside) / rows if rows else 1.0,
            silos={
                silo: {"steps": one.steps, "tokens": one.tokens, "waited": one.queue.seconds}
                for silo, one in [*going.items()][:MOST_SILOS]
            },
        )

    def _tell_record(self, record: NodeRecord, seen: str) -> None:
        name, why = named(record.failure)
        self._tell(
            "silo-round",
            round=record.server_round,
            purpose=record.purpose,
            silo=record.silo or seen or name or f"node {record.node_id}",
            counted=not record.failure,
            why=why,
            metrics=numbers(record.metrics),
            counters=record.statistics,
        )

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._log is not None:
            self._log.tell(kind, **fields, **({"alone": True} if self._alone else {}))
