"""The interfaces of the trunk stream: `Transport`, the silo's end, `TrunkBackend`, the trunk's.

A transport carries requests in the order in which they were made and answers each by a future,
so that several microbatches can be in flight. A backend computes one request at a time and knows
no wire.
"""

from abc import ABC, abstractmethod
from concurrent.futures import Future
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from flower_split.tls import ClientTls
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
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

    Calls come one at a time. A call that raises a `TrunkError` changes nothing.
    """

    resumed: str
    """The offered tag of the optimizer state that it resumes from; empty when it starts afresh."""

    def forward(self, request: ForwardRequest) -> Tensor:
        """h2, (B, T, H); keeps the graph when the request says so."""
        ...

    def backward(self, request: BackwardRequest) -> Tensor | None:
        """g1, (B, T, H), or None when not wanted; frees the microbatch's activations."""
        ...

    def release(self, microbatch: int) -> None:
        """Free the activations of a microbatch that gets no backward pass."""
        ...

    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache."""
        ...

    def step(self, request: StepRequest) -> StepReply:
        """One optimizer step on the trunk's adapters, applied exactly once per step number."""
        ...

    def finish(self) -> SessionSummary:
        """Declare the session complete: only now do its adapters count."""
        ...

    def close(self) -> None:
        """Free everything, however the session ended. Can be called twice."""
        ...


@runtime_checkable
class QueueingSession(BackendSession, Protocol):
    """A session whose passes can wait for those of other sessions, and be computed with them.

    `submit` may be called from any thread, and never waits. A future that it returned is answered
    by calls of `work`, of whichever session of the backend.
    """

    def submit(self, request: ForwardRequest | BackwardRequest) -> Future[Any]:
        """Let a pass wait for its turn; the future holds what `forward` or `backward` returns.

        Raises what these raise where it is known at once.
        """
        ...

    def work(self) -> float | None:
        """Compute what is due, of any session. Returns the seconds after which to call again."""
        ...


class TrunkBackend(Protocol):
    """What hosts sessions on a trunk."""

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> BackendSession:
        """A session, or `HandshakeError` naming the field that differs."""
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

    @abstractmethod
    def forward(self, request: ForwardRequest) -> Future[Tensor]:
        """h1 -> h2."""

    @abstractmethod
    def backward(self, request: BackwardRequest) -> Future[Tensor | None]:
        """g2 -> g1."""

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
