"""The trunk service: the process of `flower-split trunk serve`, from its settings to its end."""

import gc
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from flower_split.apps.process import set_up_process
from flower_split.apps.services.systemd import tell_systemd
from flower_split.attestation import attester_of
from flower_split.config.sections import CutConfig, ModelConfig, SplitConfig, TrunkConfig
from flower_split.control.run_bounds import RunBounds
from flower_split.control.served_model import ServedModel
from flower_split.control.served_runs import ServedRuns
from flower_split.control.served_trunk import ServedTrunk
from flower_split.control.server import TrunkServiceServer
from flower_split.control.service_tls import ServiceTls
from flower_split.errors import ConfigError
from flower_split.server.hosting.resolving import load_run_trunks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServicePorts:
    """Where a trunk service listens, each `host:port`."""

    data: str
    control: str
    health_port: int = 0
    """On the data port's host; 0 takes a free one."""
    advertise: str = ""
    """That silos are told; empty for `data`."""
    metrics: str = ""
    """`host:port` for Prometheus; empty for none."""
    metrics_token_file: Path | None = None
    """File with the token that its readers need; None as `metrics_port` says."""


@dataclass(frozen=True, kw_only=True)
class TrunkServiceSettings:
    """What a trunk service is started with."""

    model: ModelConfig
    """By the name by which this machine finds it."""
    cuts: CutConfig
    name: str = ""
    """By which runs name the model; empty for `model.name`."""
    device: str = "auto"
    """As `trunk.device`."""
    devices: tuple[str, ...] = ()
    """As `trunk.devices`; empty for `device` alone."""
    ports: ServicePorts
    tls: ServiceTls | None = None
    bounds: RunBounds = field(default_factory=RunBounds)
    attester: str = ""
    """Name of the plug-in that makes evidence for silos; empty for none."""
    grace: float = 30.0
    """Seconds for which a service that is told to end waits for what is under way."""


def serve_trunk(settings: TrunkServiceSettings) -> None:
    """Serve runs until SIGTERM or Ctrl-C; to be called in the main thread.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        ConfigError: a port or the certificate cannot be used, there is no such device, or more of
            them than layers, or a package is missing.
        StateError: the metrics' token file cannot be used.
    """
    set_up_process()
    _log_to_stderr()
    if settings.ports.metrics:
        _check_metrics()
    attester = attester_of(settings.attester)
    ended, hurried = threading.Event(), threading.Event()
    with _signals(ended, hurried):
        config = SplitConfig(
            model=settings.model,
            split=settings.cuts,
            trunk=TrunkConfig(device=settings.device, devices=settings.devices),
        )
        trunk = ServedTrunk(
            load_run_trunks(config, key="--device"), settings.bounds.max_activation_bytes
        )
        model = ServedModel.of_run(config)
        model = replace(model, name=settings.name or model.name)
        tls = settings.tls
        runs = ServedRuns(
            trunk,
            model,
            settings.model.name,
            settings.bounds,
            strategies=() if tls is None else tls.strategies,
        )
        ports = settings.ports
        gc.collect()
        gc.freeze()  # what is here stays, and need not be looked through as a run's memory is freed
        with (
            TrunkServiceServer(
                runs,
                data=ports.data,
                control=ports.control,
                health_port=ports.health_port,
                tls=tls,
                advertise=ports.advertise,
                attester=attester,
            ) as server,
            _metrics(ports, server),
        ):
            logger.info("the trunk service has %s, %s", model, trunk)
            logger.info(
                "silos connect to %s, strategies to %s, health checks to %s, %s",
                server.address,
                server.control_address,
                server.health_address,
                "TLS" if tls else "no TLS: whoever is on this machine may open runs",
            )
            tell_systemd("READY=1")
            ended.wait()
            tell_systemd("STOPPING=1")
            logger.info("nothing new is taken; what is under way has %g s", settings.grace)
            if not server.drain(settings.grace, hurried):
                logger.warning("sessions are ended in the middle; their runs go on later")
    logger.info("the trunk service has ended")


def _log_to_stderr() -> None:
    """Flower, whose log the apps join, is no part of this process."""
    ours = logging.getLogger("flower_split")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.addHandler(handler)


def _check_metrics() -> None:
    """Before the model is loaded, which takes a while."""
    try:
        import flower_split.apps.services.metrics_port
        import flower_split.apps.services.service_metrics  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--metrics needs prometheus-client, starlette and uvicorn: pip install "
            "'flower-split[monitor]'"
        ) from error


@contextmanager
def _metrics(ports: ServicePorts, server: TrunkServiceServer) -> Iterator[None]:
    if not ports.metrics:
        yield
        return
    from flower_split.apps.services.metrics_port import metrics_port
    from flower_split.apps.services.service_metrics import ServiceMetrics

    with metrics_port(
        ports.metrics,
        ServiceMetrics(server).text,
        name="--metrics",
        is_draining=lambda: server.is_draining,
        token_file=ports.metrics_token_file,
    ) as where:
        logger.info("metrics are at %s", where)
        yield


@contextmanager
def _signals(ended: threading.Event, hurried: threading.Event) -> Iterator[None]:
    """The first signal has the service end, the second one has it end now."""

    def stop(number: int, frame: FrameType | None) -> None:
        (hurried if ended.is_set() else ended).set()

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
