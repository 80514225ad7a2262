"""The gRPC transport: a silo's session with a trunk in another process."""

import concurrent.futures
import secrets
import time
import weakref
from concurrent.futures import Future
from functools import partial

from torch import Tensor

from flower_split.config.address import Address
from flower_split.errors import (
    CertificateError,
    ConfigError,
    TokenError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.tls import ClientTls
from flower_split.transport.account import Account
from flower_split.transport.base import Transport
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_credentials,
    channel_options,
    check_plaintext,
    growing_pauses,
    open_channel,
)
from flower_split.transport.grpc.diagnosis import diagnose
from flower_split.transport.grpc.handshake import hello_frame, read_welcome
from flower_split.transport.grpc.resuming import SECRET_BYTES
from flower_split.transport.grpc.stream import GrpcStream
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    BackwardReply,
    BackwardRequest,
    Discard,
    DropCache,
    Finish,
    ForwardReply,
    ForwardRequest,
    Release,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
    Weigh,
    WireBytes,
)
from flower_split.transport.rules import HopRules

_DIAGNOSIS_SECONDS = 3.0


class GrpcTransport(Transport):
    """A session with the trunk at `address`, open when the constructor returns.

    Calls never wait for the network: requests queue up and are encoded by another thread, so a
    tensor must not be changed before its future is done. Any number of requests may be queued;
    a trunk that holds `limits.max_in_flight` microbatches already refuses the next one with
    `TrunkBusyError`, which ends the session like every other error. Tensors arrive on the CPU.

    Where the connection breaks, the session goes on over another one, from the last request that
    both ends have, for as long as the trunk holds it: futures in flight are done later, and with
    the same values.

    Args:
        address: `host:port` of a `TrunkServer`; an IPv6 host in brackets.
        spec: What the silo brings to the handshake.
        ticket: Who the silo is; None where the trunk asks for no ticket.
        tls: Which trunk is believed; None connects without encryption, to loopback only.
        plaintext: Whether that is allowed to other hosts too.
        connect_timeout: Seconds for connecting and the handshake.
        patience: Seconds for which a trunk that has no room is asked again.
        timeout: Seconds that the trunk may take to answer a request.
        keepalive: How a dead connection is found.

    Raises:
        ConfigError: a setting is malformed, or the channel would be readable for others.
        TrunkUnavailableError: no trunk answers at `address`; says what is there instead.
        CertificateError: TLS failed; says why.
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
        tls: ClientTls | None = None,
        plaintext: bool = False,
        connect_timeout: float = 10.0,
        patience: float = 0.0,
        timeout: float = 600.0,
        keepalive: Keepalive | None = None,
    ) -> None:
        if not (connect_timeout > 0 and patience >= 0 and timeout > 0):
            raise ConfigError(
                f"the trunk's timeouts must be positive, not {connect_timeout!r}, {patience!r}, "
                f"{timeout!r}"
            )
        self._peer = Address.parse(address, what="the trunk's address")
        if tls is None:
            check_plaintext(self._peer, allowed=plaintext)
        self.spec = spec
        self._tls = tls
        self._credentials = None if tls is None else channel_credentials(tls)
        keepalive = keepalive or Keepalive()
        self._options = channel_options(keepalive)
        self._timeout = timeout
        self._detection = keepalive.detection
        welcome = self._opened(ticket, connect_timeout, patience)
        self.limits = read_welcome(welcome)
        self.resumed = welcome.resumed

    @property
    def account(self) -> Account | None:
        """Is told of tensors before they leave."""
        return self._stream.account

    @account.setter
    def account(self, account: Account | None) -> None:
        self._stream.account = account

    def forward(self, request: ForwardRequest) -> Future[Tensor | ForwardReply]:
        """h1 -> h2."""
        return self._stream.ask(request)

    def backward(self, request: BackwardRequest) -> Future[Tensor | BackwardReply | None]:
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

    def discard(self, *, zeros: bool) -> None:
        """Forget the adapter's gradient of the step so far."""
        self._stream.tell(Discard(zeros=zeros))

    def weigh(self, microbatch: int, factors: tuple[float, ...]) -> None:
        """Add the rows' gradients that are held of a microbatch to that of the step."""
        self._stream.tell(Weigh(microbatch=microbatch, factors=factors))

    def adapter(self, call: AdapterCall) -> Future[AdapterReply]:
        """Do something with the trunk's part of the session's adapter."""
        return self._stream.ask(call)

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

    @property
    def reconnects(self) -> int:
        """How often the session went on over another connection."""
        return self._stream.reconnects

    def _opened(self, ticket: Ticket | None, seconds: float, patience: float) -> pb.Welcome:
        """The welcome of the session, which is opened; see the class."""
        secret = secrets.token_bytes(SECRET_BYTES)
        began = time.monotonic()
        broken: TrunkError | None = None
        pauses, attempt = growing_pauses(), 0
        while True:
            self._start(hello_frame(self.spec, ticket, secret=secret, attempt=attempt))
            pause, attempt = next(pauses), attempt + 1
            try:
                return self._welcome(seconds)
            except TrunkBusyError:
                self.close()
                if time.monotonic() + pause > began + patience:
                    raise
            except TrunkUnavailableError as error:
                self.close()
                left = began + seconds - time.monotonic()
                found = diagnose(
                    str(self._peer), self._tls, min(max(1.0, left), _DIAGNOSIS_SECONDS)
                )
                if found is not None:
                    raise found from error
                # The trunk may have taken the ticket: then it knows the session by its secret.
                if not self._stream.is_broken or pause > left:
                    raise
                broken = error
            except BaseException as error:
                self.close()
                if isinstance(error, TokenError) and broken is not None:
                    raise broken from error  # the trunk did not hold the session
                raise
            time.sleep(pause)

    def _start(self, hello: pb.ClientFrame) -> None:
        peer, credentials, options = self._peer, self._credentials, self._options
        self._stream = GrpcStream(
            lambda: open_channel(peer, credentials, options),
            str(peer),
            hello,
            HopRules(self.spec),
            self._timeout,
            detection=self._detection,
            refusal=partial(_distrust, str(peer), self._tls),
        )
        # runs when the transport is forgotten or the interpreter exits
        self._finalizer = weakref.finalize(self, self._stream.close)

    def _welcome(self, seconds: float) -> pb.Welcome:
        """The trunk's welcome, after which there is time left to find out what is wrong."""
        spare = min(_DIAGNOSIS_SECONDS, seconds / 4)
        try:
            return self._stream.welcome.result(seconds - spare)
        except concurrent.futures.TimeoutError:
            raise TrunkUnavailableError(
                f"trunk at {self._peer} did not answer within {seconds:g} s; check the address "
                "and that a TrunkServer runs there"
            ) from None

    def _end(self, reason: str) -> None:
        self._finalizer.detach()
        self._stream.close(reason)


def _distrust(address: str, tls: ClientTls | None, details: str) -> TrunkError | None:
    """Why a silo believes whoever is at `address` no more, after gRPC has told `details`."""
    if tls is None or "certificate" not in details.lower():
        return None
    found = diagnose(address, tls, _DIAGNOSIS_SECONDS)
    return found if isinstance(found, CertificateError) else None
