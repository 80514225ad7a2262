"""The two listeners of a trunk server, the trunk's own and health's, and the loop they run on.

The trunk's listener turns every call away, health checks too, once it has as many as it may.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from flower_split.config.address import Address
from flower_split.errors import ConfigError
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.attestation_pb2_grpc import (
    AttestationServicer,
    add_AttestationServicer_to_server,
)
from flower_split.proto.trunk_pb2_grpc import TrunkServicer, add_TrunkServicer_to_server
from flower_split.transport.grpc.channel import UNCOMPRESSED, Options

Result = TypeVar("Result")

TRUNK_SERVICE: str = pb.DESCRIPTOR.services_by_name["Trunk"].full_name
# Two processes on one port would share the silos between them.
_OWN_PORT = ("grpc.so_reuseport", 0)
_CONNECTIONS = "grpc.max_allowed_incoming_connections"
_HANDSHAKE_SECONDS = 10
_IDLE_SECONDS = 30
_MAX_CHECKS = 64
_STREAMS = "grpc.max_concurrent_streams"
# Of one connection, as a multiple of the streams that are served: what comes beyond those is told
# so. Without a bound, gRPC cancels others' new streams as well while thousands wait.
_STREAMS_TOLD = 2
# What a peer costs before it has shown a ticket: bounded in number and in time.
_STRANGERS: Options = [
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1000),
    ("grpc.max_connection_idle_ms", _IDLE_SECONDS * 1000),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 8192),
]


async def listen_trunk(
    service: TrunkServicer,
    attestation: AttestationServicer,
    address: str,
    credentials: grpc.ServerCredentials | None,
    options: Options,
    max_streams: int,
    max_connections: int,
) -> tuple[grpc.aio.Server, int]:
    """A server for both services, and the port that it listens on.

    Raises:
        ConfigError: it cannot listen on `address`.
    """
    server = grpc.aio.server(
        options=[*options, *strangers(max_connections, max_streams)],
        maximum_concurrent_rpcs=max_streams,
    )
    add_TrunkServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    add_AttestationServicer_to_server(attestation, server)  # type: ignore[no-untyped-call]
    return server, await started(server, address, credentials)


Readiness: TypeAlias = Callable[[], Awaitable[None]]
"""Has the health service answer NOT_SERVING from now on, for good."""


async def listen_health(
    address: str, credentials: grpc.ServerCredentials | None, max_connections: int
) -> tuple[grpc.aio.Server, int, Readiness]:
    """A server of the standard gRPC health service, the port that it listens on, and its end.

    Raises:
        ConfigError: it cannot listen on `address`.
    """
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    await servicer.set(TRUNK_SERVICE, health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server(
        options=[*UNCOMPRESSED, *strangers(max_connections, _MAX_CHECKS)],
        maximum_concurrent_rpcs=_MAX_CHECKS,
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    return server, await started(server, address, credentials), servicer.enter_graceful_shutdown


def strangers(max_connections: int, max_streams: int) -> Options:
    """Options that bound what peers cost that have shown nothing yet.

    Args:
        max_connections: That are taken at a time.
        max_streams: That are served at a time.
    """
    return [
        _OWN_PORT,
        *_STRANGERS,
        (_CONNECTIONS, max_connections),
        (_STREAMS, _STREAMS_TOLD * max_streams),
    ]


async def started(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    """The port that `server` listens on from now on.

    Raises:
        ConfigError: it cannot listen on `address`.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        why = _obstacle(address) or "gRPC gives no reason"
        raise ConfigError(
            f"cannot listen on {address}: {why}. Choose another trunk.host and trunk.port"
        ) from exc
    await server.start()
    return port


def _obstacle(address: str) -> str:
    """What the system says of listening on `address`, of which gRPC says nothing; empty if none."""
    peer = Address.parse(address)
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(
            peer.host, peer.port, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "the port is in use"
        if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            return "the host is not one of this machine's"
        return error.strerror or type(error).__name__
    return ""


class LoopThread:
    """Runs coroutines on its loop until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # a daemon: a host that forgets to stop its server can still exit
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """What `coroutine` returns or raises; waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Stop the loop and join its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
