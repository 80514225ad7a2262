"""A run in Prometheus' text format: what the live page shows, as metrics for operators' tools.

Names, units and types follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/).
Counters count what `events.jsonl` has of the run; they begin anew with a run that begins anew.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from flower_split.reporting.events import Event
from flower_split.reporting.live.view import MOST_SILOS, RUNNING, WAITING, RunView

CONTENT_TYPE = CONTENT_TYPE_LATEST
RUN_STATES = (WAITING, RUNNING, "completed", "failed")
SILO_STATES = ("silent", "working", "slow", "done", "lost", "refused", "left")

_COUNTED = {
    "trunk-tokens": ("flower_split_tokens", "Positions that passed the trunk, padding included."),
    "trunk-forwards": ("flower_split_microbatches", "Microbatches that passed the trunk."),
    "optimizer-steps": ("flower_split_optimizer_steps", "Steps taken on both sides of the cut."),
    "queue-seconds": ("flower_split_queue_seconds", "Time that passes waited at the trunk."),
    "seconds": ("flower_split_session_seconds", "Time of sessions, from message to reply."),
    "delivery-bytes": ("flower_split_delivery_bytes", "The model's parts, from the server."),
}
"""Counters of a session that are added up by silo: the metric's name and what it says."""


class RunMetrics:
    """Adds up the events of a run, and tells what they come to."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], float] = defaultdict(float)
        self._bytes: dict[tuple[str, ...], float] = defaultdict(float)
        self._refused: dict[tuple[str, ...], float] = defaultdict(float)
        self._silos: set[str] = set()

    def take(self, events: Iterable[Event]) -> None:
        """Let events happen. Whatever is not as documented is passed over."""
        for event in events:
            if event.kind == "silo-round":
                try:
                    self._add(event.fields)
                except (KeyError, TypeError, ValueError, AttributeError):
                    continue  # no event of this version's

    def text(self, view: RunView) -> bytes:
        """All metrics of the run that is in `view`, in the text format, UTF-8."""
        registry = CollectorRegistry()
        registry.register(_Told([*self._families(view)]))
        return generate_latest(registry)

    def _add(self, told: Mapping[str, Any]) -> None:
        silo, purpose = str(told["silo"]), str(told["purpose"])
        if silo not in self._silos and len(self._silos) >= MOST_SILOS:
            return
        self._silos.add(silo)
        if not told["counted"]:
            self._refused[silo, purpose] += 1
        for name, value in told["counters"].items():
            hop = name.removeprefix("bytes-")
            if name in _COUNTED:
                self._totals[name, silo] += value
            elif hop != name and hop not in ("sent", "received"):
                self._bytes[silo, hop] += value

    def _families(self, view: RunView) -> Iterator[Metric]:
        about = {
            name: str(view.about[name])
            for name in ("model", "method", "strategy", "trunk_adapters")
            if name in view.about
        }
        yield InfoMetricFamily("flower_split_run", "What is trained, and how.", about)
        yield _by(
            GaugeMetricFamily("flower_split_run_state", "1 for the run's state.", labels=["state"]),
            {(state,): float(state == view.state) for state in RUN_STATES},
        )
        for name, what, value in (
            ("round", "The round that is under way; 0 comes before the first.", view.round),
            ("rounds", "The rounds that the run is to have.", view.rounds),
            ("open_sessions", "Silos whose session at the trunk is open.", view.sessions),
            ("queue_waiting", "Passes that wait at the trunk.", view.waiting),
            ("batch_occupancy_ratio", "Rows computed together over a silo's own.", view.occupancy),
            ("last_event_timestamp_seconds", "When the run last told something.", view.last),
        ):
            yield GaugeMetricFamily(f"flower_split_{name}", what, value)
        yield _by(
            GaugeMetricFamily("flower_split_round_seconds", "Time of a round.", labels=["round"]),
            {(str(max(view.seconds)),): view.seconds[max(view.seconds)]} if view.seconds else {},
        )
        yield from self._of_silos(view)
        for name, (metric, what) in _COUNTED.items():
            family = CounterMetricFamily(metric, what, labels=["silo"])
            yield _by(family, {(s,): v for (n, s), v in self._totals.items() if n == name})
        yield _by(
            CounterMetricFamily("flower_split_wire_bytes", "Payload.", labels=["silo", "hop"]),
            self._bytes,
        )
        yield _by(
            CounterMetricFamily(
                "flower_split_replies_refused",
                "Exchanges in which a silo did not count.",
                labels=["silo", "purpose"],
            ),
            self._refused,
        )

    def _of_silos(self, view: RunView) -> Iterator[Metric]:
        states = Counter(one.state for one in view.of_silos)
        yield _by(
            GaugeMetricFamily("flower_split_silos", "Silos by state.", labels=["state"]),
            {(state,): states[state] for state in SILO_STATES},
        )
        yield _by(
            GaugeMetricFamily(
                "flower_split_silo_tokens_per_second", "Of a silo's session.", labels=["silo"]
            ),
            {(one.name,): one.rate for one in view.of_silos},
        )
        yield _by(
            GaugeMetricFamily(
                "flower_split_silo_loss",
                "A silo's last loss, in nats a token.",
                labels=["silo", "purpose"],
            ),
            {
                (one.name, purpose): losses[max(losses)]
                for one in view.of_silos
                for purpose, losses in (("train", one.train), ("evaluate", one.evaluate))
                if losses
            },
        )


class _Told(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _by(family: Any, values: Mapping[tuple[str, ...], float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]
