"""The interfaces of the trunk stream: `Transport`, the silo's end, `TrunkBackend`, the trunk's.

A transport carries requests in the order in which they were made and answers each by a future,
so that several microbatches can be in flight. A backend answers by futures too, and knows no wire.
"""

from abc import ABC, abstractmethod
from concurrent.futures import Future
from functools import cached_property
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor

from flower_split.tls import ClientTls
from flower_split.transport.account import Account
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    BackwardReply,
    BackwardRequest,
    ForwardReply,
    ForwardRequest,
    Reply,
    Request,
    SessionLimits,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
    WireBytes,
)
from flower_split.transport.meters import WaitMeter


class BackendSession(Protocol):
    """One silo's state at the trunk: activations, adapters, optimizer.

    Forward and backward passes come up to `depth` at a time, and everything else while nothing is
    unanswered. A request that fails with a `TrunkError` has changed nothing, unless others had
    come after it: then the session is to be closed. Where one part of a trunk has made a pass that
    another could not, and cannot take it back, all that follows is refused.
    """

    resumed: str
    """The offered tag of the session state that it resumes from; empty when it starts afresh."""
    depth: int
    """Passes that it takes before the first of them is answered."""

    def submit(self, request: Request) -> Future[Reply]:
        """Let `request` wait for its turn; never waits itself and never raises.

        - `ForwardRequest`: the future holds h2, (B, T, H); the graph is kept where it says so.
        - `BackwardRequest`: g1, (B, T, H), or None when not wanted; frees the activations.
          Where more than g1 is asked for, a `BackwardReply`.
        - `StepRequest`: `StepReply`, of one optimizer step, applied exactly once a step number.
        - `AdapterCall`: `AdapterReply`.
        - `Finish`: `SessionSummary`; only now do the session's adapters count.
        - `Release`, `DropCache`, `Discard`, `Weigh`: None.
        """
        ...

    def close(self) -> Future[None]:
        """Free everything, however the session ended; what still waits fails. Can be repeated."""
        ...


class TrunkBackend(Protocol):
    """What hosts sessions on a trunk, and computes in a thread of its own."""

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        """A session; the future fails with `HandshakeError` naming the field that differs."""
        ...


class Transport(ABC):
    """A silo's connection to the trunk, for one session.

    Futures fail with a `TrunkError`. After one failure of the connection every further call and
    every future in flight fails with the same error.
    """

    spec: SessionSpec
    resumed: str = ""
    """The offered tag of the optimizer state from which both ends go on; empty: both afresh."""
    limits: SessionLimits = SessionLimits()
    """What the trunk lets the session hold, as it told when it was opened."""
    account: Account | None = None
    """Is told of tensors before they leave this process; set before the first request. A transport
    that stays in the process tells nothing."""

    @abstractmethod
    def forward(self, request: ForwardRequest) -> Future[Tensor | ForwardReply]:
        """h1 -> h2, in a `ForwardReply` with AdaLoRA."""

    @abstractmethod
    def backward(self, request: BackwardRequest) -> Future[Tensor | BackwardReply | None]:
        """g2 -> g1, in a `BackwardReply` where more than g1 is asked for."""

    @abstractmethod
    def release(self, microbatch: int) -> None:
        """Free a microbatch that gets no backward pass. Never waits and never raises."""

    @abstractmethod
    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache. Never waits and never raises."""

    @abstractmethod
    def step(self, request: StepRequest) -> Future[StepReply]:
        """One optimizer step on both sides."""

    @abstractmethod
    def discard(self, *, zeros: bool) -> None:
        """Forget the adapter's gradient of the step so far. Never waits and never raises.

        Args:
            zeros: As zeros, with which a step would be taken; else as if there had been none.
        """

    @abstractmethod
    def weigh(self, microbatch: int, factors: tuple[float, ...]) -> None:
        """Add the rows' gradients that are held of a microbatch to that of the step. Never waits.

        Args:
            microbatch: Its backward pass was answered.
            factors: Of every row, 0 to 1.
        """

    @abstractmethod
    def adapter(self, call: AdapterCall) -> Future[AdapterReply]:
        """Do something with the trunk's part of the session's adapter."""

    @abstractmethod
    def finish(self) -> SessionSummary:
        """Declare the session complete and wait for the trunk's word. Ends the session."""

    @abstractmethod
    def close(self) -> None:
        """Leave, complete or not. Can be called twice; never raises."""

    @cached_property
    def waits(self) -> WaitMeter:
        """What those who call this transport note of their waiting for its answers."""
        return WaitMeter()

    @property
    @abstractmethod
    def wire_bytes(self) -> WireBytes:
        """Bytes of tensor payload sent and received so far, as encoded."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of tensor payload sent so far, as encoded."""
        return self.wire_bytes.upward

    @property
    def bytes_received(self) -> int:
        """Bytes of tensor payload received so far, as encoded."""
        return self.wire_bytes.downward

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Connect(Protocol):
    """Opens a session at the trunk; `GrpcTransport` describes the arguments."""

    def __call__(
        self,
        address: str,
        spec: SessionSpec,
        ticket: Ticket,
        *,
        tls: ClientTls | None,
        plaintext: bool,
        connect_timeout: float,
        patience: float,
    ) -> Transport:
        """The session's transport, or a `TrunkError`."""
        ...
