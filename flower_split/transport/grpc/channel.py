"""Channel options that both ends of the trunk stream need alike."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from flower_split.config.address import Address
from flower_split.config.checks import in_range
from flower_split.errors import ConfigError
from flower_split.serialization.tensors import MAX_FRAME_BYTES
from flower_split.tls import ClientTls, ServerTls

# The least time between two pings that a trunk accepts. gRPC's default of 300 s makes it close
# the connection of a silo that watches over it.
_MIN_PING_INTERVAL_MS = 500


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """How an end finds out that the other one is frozen or cut off."""

    interval: float = 1.0
    """Seconds between two pings."""
    timeout: float = 9.0
    """Seconds after which an unanswered ping means that the peer is gone. On a slow link a ping
    waits behind what is in the buffers of the way there."""

    def __post_init__(self) -> None:
        in_range("keepalive interval", self.interval, 0.5, 3600.0)
        in_range("keepalive timeout", self.timeout, 0.5, 3600.0)

    @property
    def detection(self) -> float:
        """Seconds until a dead peer is found at the latest."""
        return self.interval + self.timeout


Options = list[tuple[str, int]]

UNCOMPRESSED: Options = [("grpc.compression_enabled_algorithms_bitset", 1)]
"""Refuses compressed messages, which nobody sends: whether gRPC bounds what it inflates of one is
its version's affair, and 2 MiB may be 2 GiB."""


def channel_options(keepalive: Keepalive) -> Options:
    """Options of gRPC channels and servers, for frames of the trunk stream."""
    timeout_ms = int(keepalive.timeout * 1000)
    return [
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.keepalive_time_ms", int(keepalive.interval * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # keepalive_timeout alone leaves a frozen peer unnoticed for ping_timeout's 60 s
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        *UNCOMPRESSED,
    ]


def server_credentials(tls: ServerTls, *, for_all: bool = False) -> grpc.ServerCredentials:
    """Credentials of a server.

    Args:
        tls: The certificate, and the CA of the client certificates that are demanded.
        for_all: Whether none is demanded all the same.
    """
    client_ca = b"" if for_all else tls.client_ca
    return grpc.ssl_server_credentials(
        [(tls.private_key, tls.certificate)],
        root_certificates=client_ca or None,
        require_client_auth=bool(client_ca),
    )


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Credentials of a channel to a trunk that `tls` believes.

    Raises:
        ConfigError: this machine's own roots are asked for and cannot be found.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=tls.roots,
        private_key=tls.private_key or None,
        certificate_chain=tls.certificate or None,
    )


def open_channel(
    address: Address, credentials: grpc.ChannelCredentials | None, options: Options
) -> grpc.Channel:
    """A channel to the trunk at `address`; without credentials it is not encrypted.

    gRPC goes through the proxy that the environment names, and to loopback through none. Its
    connection is its own: one that another channel of the process has to the same address may be
    dead and not known to be.
    """
    options = [*options, ("grpc.use_local_subchannel_pool", 1)]
    if address.is_loopback:
        options = [*options, ("grpc.enable_http_proxy", 0)]
    if credentials is None:
        return grpc.insecure_channel(str(address), options)
    return grpc.secure_channel(str(address), credentials, options)


def check_plaintext(address: Address, *, allowed: bool) -> None:
    """Raise `ConfigError` when a channel without TLS would leave this machine unasked."""
    if not allowed and not address.is_loopback:
        raise ConfigError(
            f"{address} can be reached from other machines, so the trunk's channel needs TLS: "
            "pass tls=, or plaintext=True where the network between both ends is trusted"
        )


FIRST, LONGEST = 0.1, 5.0
"""Seconds at most of the first pause, and of every one."""


def growing_pauses(longest: float = LONGEST) -> Iterator[float]:
    """Seconds to wait before the next attempt, without end; at most `longest`."""
    pause = FIRST
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, longest)
