"""A stream of the model's delivery at the silo's end, over gRPC."""

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from flower_split.config.address import Address
from flower_split.errors import (
    ConfigError,
    HandshakeError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkStub
from flower_split.serialization.tensors import CHUNK_BYTES
from flower_split.tls import ClientTls
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_credentials,
    channel_options,
    check_plaintext,
    open_channel,
)
from flower_split.transport.grpc.diagnosis import diagnose
from flower_split.transport.grpc.handshake import ticket_message
from flower_split.transport.grpc.status import from_status
from flower_split.transport.messages import PROTOCOL_VERSION, Ticket

_JOIN_SECONDS = 5.0
_DIAGNOSIS_SECONDS = 3.0


class GrpcDelivery:
    """Reads parts of the pack that the trunk at `address` delivers, one after the other.

    Nothing is sent before the first `read`.

    Args:
        address: `host:port` of a `TrunkServer`.
        ticket: Good for this stream; None where the trunk asks for no ticket.
        tls: Which trunk is believed; None connects without encryption, to loopback only.
        plaintext: Whether that is allowed to other hosts too.
        connect_timeout: Seconds for connecting and the first bytes.
        timeout: Seconds that the next MiB may take.
        keepalive: How a dead connection is found.

    Raises:
        ConfigError: a setting is malformed, or the channel would be readable for others.
    """

    def __init__(
        self,
        address: str,
        ticket: Ticket | None = None,
        *,
        tls: ClientTls | None = None,
        plaintext: bool = False,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
        keepalive: Keepalive | None = None,
    ) -> None:
        if not (connect_timeout > 0 and timeout > 0):
            raise ConfigError(
                f"the trunk's timeouts must be positive, not {connect_timeout!r}, {timeout!r}"
            )
        peer = Address.parse(address, what="the trunk's address")
        if tls is None:
            check_plaintext(peer, allowed=plaintext)
        self._address, self._tls = str(peer), tls
        self._greeting = pb.DeliverRequest(protocol_version=PROTOCOL_VERSION)
        if ticket is not None:
            try:
                self._greeting.ticket.CopyFrom(ticket_message(ticket))
            except ValueError as exc:
                raise HandshakeError(f"the ticket does not fit the wire: {exc}") from exc
        credentials = None if tls is None else channel_credentials(tls)
        options = channel_options(keepalive or Keepalive())
        self._channel = open_channel(peer, credentials, options)
        self._requests: SimpleQueue[pb.DeliverRequest | None] = SimpleQueue()
        stub = TrunkStub(self._channel)  # type: ignore[no-untyped-call]
        self._replies = stub.Deliver(iter(self._requests.get, None))
        self._limit, self._timeout = connect_timeout, timeout
        self._waiting_since = 0.0  # zero while nothing is awaited
        self._overdue = False
        self._began = False
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="delivery-watch", daemon=True)
        self._watcher.start()

    def read(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a part from `offset` to its end, in pieces of 1 MiB.

        Args:
            digest: The part's SHA-256, hexadecimal.
            offset: Bytes of it that are not needed.

        Raises:
            TrunkError: the trunk refuses it or breaks the protocol, or the stream broke. Before
                the first bytes came, a failure says what was found wrong at the address.
        """
        request, self._greeting = self._greeting, pb.DeliverRequest()
        request.digest, request.offset = bytes.fromhex(digest), offset
        self._requests.put(request)
        while True:
            reply = self._next()
            if (not reply.last and len(reply.data) != CHUNK_BYTES) or len(reply.data) > CHUNK_BYTES:
                raise WireError(
                    f"trunk at {self._address}: a piece of {len(reply.data)} bytes, expected"
                    f" {CHUNK_BYTES}, or fewer for the last one"
                )
            if reply.data:
                yield reply.data
            if reply.last:
                return

    def close(self) -> None:
        """End the stream. Can be called twice and from anywhere."""
        self._closed.set()
        self._requests.put(None)
        self._replies.cancel()
        self._channel.close()
        if self._watcher is not threading.current_thread():
            self._watcher.join(_JOIN_SECONDS)

    def _next(self) -> pb.DeliverReply:
        self._waiting_since = time.monotonic()
        try:
            reply: pb.DeliverReply | None = next(self._replies, None)
        except grpc.RpcError as exc:
            raise self._failure() from exc
        finally:
            self._waiting_since = 0.0
        if reply is None:
            raise TrunkUnavailableError(f"trunk at {self._address} ended the model's delivery")
        self._limit, self._began = self._timeout, True
        return reply

    def _failure(self) -> TrunkError:
        """What the end of the stream means."""
        call = self._replies
        error: TrunkError = TrunkUnavailableError(
            f"trunk at {self._address} sent nothing of the model within {self._limit:g} s"
        )
        if not self._overdue:
            error = from_status(
                call.code(), call.details(), call.trailing_metadata(), self._address
            )
        if self._began or not isinstance(error, TrunkUnavailableError):
            return error
        return diagnose(self._address, self._tls, _DIAGNOSIS_SECONDS) or error

    def _watch(self) -> None:
        while not self._closed.wait(min(0.5, self._limit / 4)):
            since = self._waiting_since
            if since and time.monotonic() - since > self._limit:
                self._overdue = True
                self._replies.cancel()
                return
