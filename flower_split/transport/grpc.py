"""The gRPC transport: a silo's session with a trunk in another process."""

import concurrent.futures
import weakref
from concurrent.futures import Future

import grpc
from torch import Tensor

from flower_split.errors import ConfigError, TrunkUnavailableError
from flower_split.transport.base import Transport
from flower_split.transport.channel import Keepalive, channel_options
from flower_split.transport.grpc_stream import GrpcStream
from flower_split.transport.hello import hello_frame, read_welcome
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
    WireBytes,
)
from flower_split.transport.requests import DropCache, Finish, Release
from flower_split.transport.rules import HopRules


class GrpcTransport(Transport):
    """A session with the trunk at `address`, open when the constructor returns.

    Calls never wait for the network: requests queue up and are encoded by another thread, so a
    tensor must not be changed before its future is done. Any number of requests may be queued;
    a trunk that holds `limits.max_in_flight` microbatches already refuses the next one with
    `TrunkBusyError`, which ends the session like every other error. Tensors arrive on the CPU.

    Args:
        address: `host:port` of a `TrunkServer`.
        spec: What the silo brings to the handshake.
        ticket: Who the silo is; None where the trunk asks for no ticket.
        credentials: TLS credentials; None connects without encryption.
        connect_timeout: Seconds for connecting and the handshake.
        timeout: Seconds that the trunk may take to answer a request.
        keepalive: How a dead connection is found.

    Raises:
        TrunkUnavailableError: no trunk answers at `address`.
        HandshakeError: the trunk was set up differently; names the field.
        TokenError: the ticket is not valid, or was used.
        ForeignRunError: the ticket belongs to another run, node or round.
        TrunkBusyError: the trunk has no room for another session.
    """

    def __init__(
        self,
        address: str,
        spec: SessionSpec,
        ticket: Ticket | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        connect_timeout: float = 10.0,
        timeout: float = 600.0,
        keepalive: Keepalive | None = None,
    ) -> None:
        if not address or not connect_timeout > 0 or not timeout > 0:
            raise ConfigError(
                f"the trunk's address must be host:port and timeouts positive, not {address!r},"
                f" {connect_timeout!r}, {timeout!r}"
            )
        self.spec = spec
        hello, rules = hello_frame(spec, ticket), HopRules(spec)
        options = channel_options(keepalive or Keepalive())
        if credentials is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address, credentials, options)
        self._stream = GrpcStream(channel, address, hello, rules, timeout)
        # runs when the transport is forgotten or the interpreter exits
        self._finalizer = weakref.finalize(self, self._stream.close)
        try:
            welcome = self._stream.welcome.result(connect_timeout)
        except concurrent.futures.TimeoutError:
            self.close()
            raise TrunkUnavailableError(
                f"trunk at {address} did not answer within {connect_timeout:g} s; check the"
                " address and that a TrunkServer runs there"
            ) from None
        except BaseException:
            self.close()
            raise
        self.limits = read_welcome(welcome)
        self.resumed = welcome.resumed

    def forward(self, request: ForwardRequest) -> Future[Tensor]:
        """h1 -> h2."""
        return self._stream.ask(request)

    def backward(self, request: BackwardRequest) -> Future[Tensor | None]:
        """g2 -> g1."""
        return self._stream.ask(request)

    def release(self, microbatch: int) -> None:
        """Free a microbatch that gets no backward pass."""
        self._stream.tell(Release(microbatch=microbatch))

    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache."""
        self._stream.tell(DropCache(cache_id=cache_id))

    def step(self, request: StepRequest) -> Future[StepReply]:
        """One optimizer step on both sides."""
        return self._stream.ask(request)

    def finish(self) -> SessionSummary:
        """Declare the session complete and wait for the trunk's word. Ends the session."""
        summary: SessionSummary = self._stream.ask(Finish()).result()
        self._end("the session has ended")
        return summary

    def close(self) -> None:
        """Leave, complete or not. Can be called twice; never raises."""
        self._end("the session was closed")

    @property
    def wire_bytes(self) -> WireBytes:
        """Bytes of tensor payload sent and received so far, as encoded."""
        return self._stream.meter.read()

    def _end(self, reason: str) -> None:
        self._finalizer.detach()
        self._stream.close(reason)
