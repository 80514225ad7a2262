"""The trunk server: hosts a backend for silos that come over gRPC."""

import asyncio
import atexit
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import grpc.aio

from flower_split.attestation import Attester
from flower_split.config.address import Address, is_any, reachable_name
from flower_split.errors import ConfigError
from flower_split.segments import Trunk
from flower_split.server.cut_engines import CutEngines
from flower_split.server.engine import TrunkEngine
from flower_split.server.grpc.attesting import AttestationService
from flower_split.server.grpc.delivery import DeliveryService, PackSource
from flower_split.server.grpc.descriptors import connection_bounds
from flower_split.server.grpc.listeners import (
    LoopThread,
    Readiness,
    listen_health,
    listen_trunk,
)
from flower_split.server.grpc.rehearsal import rehearse
from flower_split.server.grpc.service import (
    ENDED,
    ServiceLimits,
    SessionBounds,
    TrunkService,
)
from flower_split.server.stages.chain import Chain
from flower_split.server.tickets import Admission
from flower_split.tls import ServerTls
from flower_split.transport.base import TrunkBackend
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_options,
    check_plaintext,
    server_credentials,
)
from flower_split.transport.messages import Ticket

logger = logging.getLogger(__name__)

# Streams beyond the sessions that may be open: they get a proper refusal instead of gRPC's own.
_SPARE_STREAMS = 16
# What the word that the trunk has ended has on its way to the silos.
_FAREWELL_SECONDS = 0.5


class TrunkServer:
    """A gRPC server for `backend`, in a thread of its own; a context manager.

    The backend computes in a thread of its own. A session is closed exactly once, however its
    stream ends.

    Args:
        backend: Hosts the sessions: an engine, or a trunk that then stays frozen.
        address: `host:port` to listen on, an IPv6 host in brackets; port 0 takes a free one.
        admit: Decides who may open a session, such as a `TicketBook`; None lets everyone in.
        pack: The silos' share of the model, for those who have no checkpoint; None delivers none.
            It is the caller's to close.
        limits: Bounds of the service and of its sessions.
        tls: The trunk's certificate; None serves without encryption, on loopback only.
        plaintext: Whether that is allowed on other hosts too; logged as a warning.
        advertise: `host:port` that silos are told to connect to; empty for the bound address, and
            without a port, or with port 0, that of the bound address.
        health: Whether the gRPC health service listens too, on the same host. It is TLS when the
            trunk is, and demands no client certificate.
        health_port: Its port; 0 takes a free one.
        keepalive: How a dead silo is found.
        bounds: Bounds of the session that a ticket opens; None for those of `limits`.
        attester: Makes evidence of what runs the trunk, for silos that demand it.

    Raises:
        ConfigError: an address is malformed, other machines could listen in, or the certificate
            is not for the host that silos connect to.
    """

    def __init__(
        self,
        backend: TrunkBackend | Trunk,
        address: str = "127.0.0.1:0",
        *,
        admit: Admission | None = None,
        pack: PackSource | None = None,
        limits: ServiceLimits | None = None,
        tls: ServerTls | None = None,
        plaintext: bool = False,
        advertise: str = "",
        health: bool = True,
        health_port: int = 0,
        keepalive: Keepalive | None = None,
        bounds: Callable[[Ticket | None], SessionBounds] | None = None,
        attester: Attester | None = None,
    ) -> None:
        self._bind = Address.parse(address)
        self._advertise = Address.parse(advertise, port=0) if advertise else None
        self._health = Address(self._bind.host, health_port) if health else None
        self._tls = tls
        if tls is None:
            check_plaintext(self._bind, allowed=plaintext)
        else:
            tls.check_host(self._reached(0).host)
        self._limits = limits or ServiceLimits()
        self._options = channel_options(keepalive or Keepalive())
        self._codecs = ThreadPoolExecutor(2, thread_name_prefix="trunk-codecs")
        hosted = TrunkEngine(backend) if isinstance(backend, Trunk) else backend
        if isinstance(hosted, TrunkEngine | CutEngines | Chain):
            elements = hosted.limits.max_adapter_elements
            session = replace(self._limits.session, max_adapter_elements=elements)
            self._limits = replace(self._limits, session=session)
        self._delivery = DeliveryService(
            pack,
            admit,
            max_streams=self._limits.max_deliveries,
            idle_timeout=self._limits.idle_timeout,
        )
        self._service = TrunkService(
            hosted, admit, self._limits, self._codecs, self._delivery, bounds
        )
        self._attestation = AttestationService(attester, tls, admit)
        self._loop: LoopThread | None = None
        self._stopped = False
        self._servers: list[grpc.aio.Server] = []
        self._not_ready: Readiness | None = None
        self._port = self._health_port = 0

    def start(self) -> Self:
        """Listen; returns once silos can connect.

        Raises:
            ConfigError: the server cannot listen on its address, has too few descriptors, was
                started before, or has a certificate with which no silo could connect.
        """
        if self._loop is not None or self._stopped:
            raise ConfigError("a TrunkServer starts once; make a new one")
        if self._tls is None and not self._bind.is_loopback:
            logger.warning(
                "the trunk's channel on %s is NOT encrypted: whoever can listen on the network "
                "reads the silos' activations and tokens",
                self._bind,
            )
        self._loop = LoopThread("trunk-server")
        atexit.register(self.stop, 0.0)
        try:
            self._loop.run(self._listen())
        except BaseException:
            self.stop(grace=0.0)
            raise
        return self

    def retire(self, why: str) -> None:
        """Take no further sessions; those that are open go on. Can be called twice.

        The health service answers NOT_SERVING from now on.

        Args:
            why: What the silos that come, or whose connections break, are told.
        """
        if self._loop is not None:
            self._loop.run(self._retire(why))

    def stop(self, grace: float = 0.5) -> None:
        """Stop listening, end all sessions and join all threads. Can be called twice.

        Meanwhile the health service answers NOT_SERVING.

        Args:
            grace: Seconds that open sessions have to end by themselves.
        """
        atexit.unregister(self.stop)
        loop, self._loop, self._stopped = self._loop, None, True
        if loop is not None:
            loop.run(self._end(grace))
            loop.close()
        self._codecs.shutdown()
        self._delivery.close()
        self._attestation.close()

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 before `start`."""
        return self._port

    @property
    def address(self) -> str:
        """Host and port that silos connect to; this machine's name when all hosts are bound."""
        return str(self._reached(self._port))

    @property
    def health_address(self) -> str:
        """Host and port of the health service; empty without one."""
        return str(Address(self._bind.host, self._health_port)) if self._health_port else ""

    @property
    def num_sessions(self) -> int:
        """Sessions that are open now."""
        return self._service.num_sessions

    @property
    def num_deliveries(self) -> int:
        """Streams of the model's delivery that are open now."""
        return self._delivery.num_streams

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _reached(self, port: int) -> Address:
        """The address that silos connect to when the server listens on `port`."""
        if self._advertise is not None:
            return Address(self._advertise.host, self._advertise.port or port)
        host = self._bind.host
        return Address(reachable_name() if is_any(host) else host, port)

    async def _listen(self) -> None:
        tls, limits = self._tls, self._limits
        # a session has two streams where its silo finds sooner than the trunk that one broke
        max_streams = 2 * limits.max_sessions + limits.max_deliveries + _SPARE_STREAMS
        if tls is not None:
            await rehearse(tls, self._reached(0).host)
        credentials = None if tls is None else server_credentials(tls)
        bounds = connection_bounds()
        server, self._port = await listen_trunk(
            self._service,
            self._attestation,
            str(self._bind),
            credentials,
            self._options,
            max_streams,
            bounds.trunk,
        )
        self._servers.append(server)
        if self._health is not None:
            open_to_all = None if tls is None else server_credentials(tls, for_all=True)
            server, self._health_port, self._not_ready = await listen_health(
                str(self._health), open_to_all, bounds.health
            )
            self._servers.append(server)

    async def _retire(self, why: str) -> None:
        if self._not_ready is not None:
            await self._not_ready()
        self._service.retire(why)

    async def _end(self, grace: float) -> None:
        await self._retire(ENDED)
        dismissal = asyncio.get_running_loop().call_later(grace, self._service.dismiss)
        for server in self._servers:  # health answers to the last
            await server.stop(grace + _FAREWELL_SECONDS)
        self._servers.clear()
        dismissal.cancel()
        self._service.dismiss()
        await self._service.drain()
        # gRPC's own, of streams that have just ended: it would complain of a loop that stops
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=_FAREWELL_SECONDS)
