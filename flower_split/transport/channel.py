"""Channel options that both ends of the trunk stream need alike."""

from dataclasses import dataclass

from flower_split.config.checks import in_range
from flower_split.serialization.sending import MAX_FRAME_BYTES

# The least time between two pings that a trunk accepts. gRPC's default of 300 s makes it close
# the connection of a silo that watches over it.
_MIN_PING_INTERVAL_MS = 500


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """How an end finds out that the other one is frozen or cut off."""

    interval: float = 10.0
    """Seconds between two pings."""
    timeout: float = 10.0
    """Seconds after which an unanswered ping means that the peer is gone."""

    def __post_init__(self) -> None:
        in_range("keepalive interval", self.interval, 0.5, 3600.0)
        in_range("keepalive timeout", self.timeout, 0.5, 3600.0)


Options = list[tuple[str, int]]


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
    ]
