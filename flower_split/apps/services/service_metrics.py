"""A trunk service in Prometheus' text format, with what the process itself takes.

Runs go by the name that the service's log gives them. Names, units and types follow Prometheus'
conventions (https://prometheus.io/docs/practices/naming/).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from flower_split.control.server import TrunkServiceServer

PREFIX = "flower_split_service_"


class ServiceMetrics(Collector):
    """Reads a service when it is asked.

    Args:
        server: The service.
    """

    def __init__(self, server: TrunkServiceServer) -> None:
        self._server = server
        self._about = {"model": server.model.name, "device": server.trunk.devices}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics as they are now, UTF-8."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        server, figures = self._server, self._server.figures
        yield InfoMetricFamily(PREFIX + "model", "What is served, and where it is.", self._about)
        for name, what, value in (
            ("draining", "1 where nothing new is taken any more.", server.is_draining),
            ("runs", "Runs that are open.", len(figures.runs)),
            ("open_sessions", "Sessions of silos that are open.", server.num_sessions),
            ("open_deliveries", "Deliveries to silos under way.", server.num_deliveries),
        ):
            yield GaugeMetricFamily(PREFIX + name, what, float(value))
        free = GaugeMetricFamily(
            PREFIX + "free_memory_bytes", "That nobody uses, of a device.", labels=["device"]
        )
        for device, unused in server.trunk.unused_memory().items():
            free.add_metric([device], float(unused))
        yield free
        done = figures.computed
        for name, what, count in (
            ("opened_runs", "Runs that were opened.", figures.opened),
            ("passes", "Forward and backward passes of microbatches.", done.passes),
            ("tokens", "Positions in these, padding included.", done.tokens),
            ("compute_seconds", "That the compute threads spent on them.", done.seconds),
        ):
            yield CounterMetricFamily(PREFIX + name, what, float(count))
        for name, what, values in (
            ("run_sessions", "Sessions that are open.", [one.sessions for one in figures.runs]),
            ("run_waiting", "Passes that wait.", [one.waiting for one in figures.runs]),
            ("run_room_bytes", "That it may yet have.", [one.room for one in figures.runs]),
        ):
            family = GaugeMetricFamily(PREFIX + name, what, labels=["run"])
            for run, value in zip(figures.runs, values, strict=True):
                family.add_metric([run.name], float(value))
            yield family
        tokens = CounterMetricFamily(
            PREFIX + "run_tokens", "Positions that passed, padding included.", labels=["run"]
        )
        for run in figures.runs:
            tokens.add_metric([run.name], float(run.computed.tokens))
        yield tokens
