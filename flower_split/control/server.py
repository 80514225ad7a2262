"""`TrunkServiceServer`: a trunk service's three ports, and how it comes to its end."""

import asyncio
import logging
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

import grpc.aio

from flower_split.attestation import Attester
from flower_split.config.address import Address
from flower_split.control.calls import RunCalls
from flower_split.control.data_port import DataPort
from flower_split.control.served_model import ServedModel
from flower_split.control.served_runs import ServedRuns, ServiceFigures
from flower_split.control.served_trunk import ServedTrunk
from flower_split.control.service import ControlService
from flower_split.control.service_tls import ServiceTls
from flower_split.proto.control_pb2_grpc import add_ControlServicer_to_server
from flower_split.server.grpc.listeners import LoopThread, started, strangers
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.hosting.run_trunk import SiloChannel
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_options,
    check_plaintext,
    server_credentials,
)

logger = logging.getLogger(__name__)

STOPPING = "the trunk service is being stopped: its runs go on when it is started again"
_MOST_CALLS = 512
_MOST_CONNECTIONS = 256
_SPARE_WORKERS = 2
_MOST_WORKERS = 64
_EXPIRE_SECONDS = 5.0
_LOOK_SECONDS = 0.2


class TrunkServiceServer:
    """Serves `runs` at a data port for silos, a control port for strategies and a health port.

    Without TLS all three are on loopback: whoever can reach the control port may open runs.

    Args:
        runs: The runs.
        data: `host:port` of the data port; port 0 takes a free one, here and for the others.
        control: `host:port` of the control port.
        health_port: On the data port's host.
        tls: Certificates; None serves without encryption.
        advertise: `host:port` that silos are told; empty for the bound address.
        attester: Makes evidence of what runs the trunk, for silos that demand it.

    Raises:
        ConfigError: an address is malformed or in use, others could listen in, or the certificate
            is not for the host that silos connect to.
    """

    def __init__(
        self,
        runs: ServedRuns,
        *,
        data: str = "127.0.0.1:0",
        control: str = "127.0.0.1:0",
        health_port: int = 0,
        tls: ServiceTls | None = None,
        advertise: str = "",
        attester: Attester | None = None,
    ) -> None:
        self._runs = runs
        self._control = Address.parse(control, what="the control port")
        if tls is None:
            check_plaintext(self._control, allowed=False)
        self._tls = tls
        port, bounds = DataPort(runs), runs.bounds
        self._data = TrunkServer(
            port,
            data,
            admit=port,
            pack=port,
            limits=ServiceLimits(
                session=bounds.session,
                max_sessions=bounds.max_sessions,
                max_deliveries=bounds.max_sessions,
                hidden_size=runs.trunk.hidden_size,
            ),
            tls=None if tls is None else tls.data,
            advertise=advertise,
            health_port=health_port,
            bounds=port.bounds,
            attester=attester,
        )
        self._stack = ExitStack()
        self._loop: LoopThread | None = None
        self._control_server: grpc.aio.Server | None = None
        self._control_port = 0
        self._expiring: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Host and port that silos connect to."""
        return self._data.address

    @property
    def control_address(self) -> str:
        """Host and port of the control port, as it is bound."""
        return str(Address(self._control.host, self._control_port))

    @property
    def health_address(self) -> str:
        """Host and port of the health service."""
        return self._data.health_address

    @property
    def model(self) -> ServedModel:
        """What is served."""
        return self._runs.model

    @property
    def trunk(self) -> ServedTrunk:
        """Where that is."""
        return self._runs.trunk

    @property
    def figures(self) -> ServiceFigures:
        """How the service stands."""
        return self._runs.figures

    @property
    def is_draining(self) -> bool:
        """Whether it takes nothing new any more."""
        return self._runs.is_draining

    @property
    def num_sessions(self) -> int:
        """Sessions of silos that are open."""
        return self._data.num_sessions

    @property
    def num_deliveries(self) -> int:
        """Deliveries to silos that are under way."""
        return self._data.num_deliveries

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._runs.end)
            stack.enter_context(self._data)
            # a run has one call at a time in a thread, and a strategy opens one run at a time
            strategies = 1 if self._tls is None else len(self._tls.strategies)
            wanted = self._runs.bounds.max_runs + strategies + _SPARE_WORKERS
            workers = stack.enter_context(
                ThreadPoolExecutor(min(_MOST_WORKERS, wanted), thread_name_prefix="trunk-control")
            )
            self._loop = LoopThread("trunk-control")
            stack.callback(self._end)
            self._loop.run(self._listen(workers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def drain(self, seconds: float, hurried: threading.Event | None = None) -> bool:
        """Take nothing new, and wait until what is under way has ended.

        Health answers NOT_SERVING meanwhile. Sessions that are open go on, and their strategies
        can collect what they leave.

        Args:
            seconds: After which it is not waited for any longer.
            hurried: Once set, neither.

        Returns:
            Whether all of it has ended.
        """
        self._runs.drain()
        self._data.retire(STOPPING)
        hurried = hurried or threading.Event()
        end = time.monotonic() + seconds
        while any(run.is_awaited for run in self._runs.all):
            if time.monotonic() > end or hurried.wait(_LOOK_SECONDS):
                return False
        return True

    async def _listen(self, workers: ThreadPoolExecutor) -> None:
        tls = self._tls
        channel = SiloChannel(
            address=self.address,
            tls=tls is not None,
            ca="" if tls is None else tls.data.ca.decode("ascii", "ignore"),
        )
        strategies: Collection[str] | None = None if tls is None else tls.strategies
        service = ControlService(self._runs, RunCalls(self._runs, channel), strategies, workers)
        server = grpc.aio.server(
            options=[*channel_options(Keepalive()), *strangers(_MOST_CONNECTIONS, _MOST_CALLS)],
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        add_ControlServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        credentials = None if tls is None else server_credentials(tls.control)
        self._control_port = await started(server, str(self._control), credentials)
        self._control_server = server
        self._expiring = asyncio.ensure_future(self._expire(workers))

    async def _expire(self, workers: ThreadPoolExecutor) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            await asyncio.get_running_loop().run_in_executor(workers, self._runs.expire)

    def _end(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._close())
            loop.close()

    async def _close(self) -> None:
        if self._expiring is not None:
            self._expiring.cancel()
        if self._control_server is not None:
            await self._control_server.stop(0.5)
