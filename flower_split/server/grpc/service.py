"""The Trunk service: admits silos, opens their sessions, and ends every stream by the table.

The event loop only moves frames; the backend computes in a thread of its own.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError

from flower_split.config.checks import at_least, in_range
from flower_split.errors import (
    SequenceError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkServicer
from flower_split.server.grpc.delivery import DeliveryService
from flower_split.server.grpc.peers import shown_by
from flower_split.server.grpc.stream import AdmittedSession, SessionStream
from flower_split.server.tickets import Admission
from flower_split.transport.base import TrunkBackend
from flower_split.transport.grpc.handshake import read_hello, welcome_frame
from flower_split.transport.grpc.requests import RequestReader
from flower_split.transport.grpc.status import Status, to_status
from flower_split.transport.messages import SessionLimits, SessionSpec, Ticket
from flower_split.transport.rules import HopRules

logger = logging.getLogger(__name__)

StreamContext: TypeAlias = "grpc.aio.ServicerContext[pb.ClientFrame, pb.ServerFrame]"
DeliveryContext: TypeAlias = "grpc.aio.ServicerContext[pb.DeliverRequest, pb.DeliverReply]"
First = TypeVar("First", pb.ClientFrame, pb.DeliverRequest)

_HELLO_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds of a trunk's service."""

    session: SessionLimits = field(default_factory=SessionLimits)
    """Bounds of every session."""
    max_sessions: int = 64
    """Sessions that may be open at once."""
    max_deliveries: int = 64
    """Streams of the model's delivery that may be open at once."""
    hidden_size: int | None = None
    """H of every tensor; None leaves the check to the backend."""
    idle_timeout: float = 600.0
    """Seconds without any progress after which a session is closed."""

    def __post_init__(self) -> None:
        at_least("max_sessions", self.max_sessions, 1)
        at_least("max_deliveries", self.max_deliveries, 1)
        in_range("idle_timeout", self.idle_timeout, 0.0, 1e7, open_low=True)


class TrunkService(TrunkServicer):
    """The service on `backend`, for one event loop.

    Args:
        backend: Hosts the sessions.
        admit: Decides who may open a session; None lets everyone in.
        limits: Bounds of the service.
        codecs: Executor for decoding and encoding large tensors.
        delivery: Serves the model's delivery.
    """

    def __init__(
        self,
        backend: TrunkBackend,
        admit: Admission | None,
        limits: ServiceLimits,
        codecs: Executor,
        delivery: DeliveryService,
    ) -> None:
        self._backend = backend
        self._admit = admit
        self._limits = limits
        self._codecs = codecs
        self._delivery = delivery
        self._streams: set[asyncio.Task[None] | None] = set()
        self._lock = threading.Lock()
        self._num_sessions = 0

    @property
    def num_sessions(self) -> int:
        """Sessions that are open now."""
        return self._num_sessions

    async def Session(  # noqa: N802 - the name that the generated base class calls
        self, request_iterator: AsyncIterator[pb.ClientFrame], context: StreamContext
    ) -> None:
        """Serve one session's stream to its end."""

        async def serve(first: pb.ClientFrame) -> None:
            await self._serve_session(first, request_iterator, context)

        await self._serve(request_iterator, context, serve)

    async def Deliver(  # noqa: N802 - the name that the generated base class calls
        self, request_iterator: AsyncIterator[pb.DeliverRequest], context: DeliveryContext
    ) -> None:
        """Serve one stream of the model's delivery to its end."""

        async def serve(first: pb.DeliverRequest) -> None:
            await self._delivery.serve(first, request_iterator, context)

        await self._serve(request_iterator, context, serve)

    async def drain(self) -> None:
        """Wait until every stream has ended and its session is closed."""
        while self._streams:
            await asyncio.sleep(0.01)

    async def _serve(
        self,
        requests: AsyncIterator[First],
        context: "StreamContext | DeliveryContext",
        serve: Callable[[First], Awaitable[None]],
    ) -> None:
        """Let `serve` resume from a stream's first request, and end the stream by the table."""
        task = asyncio.current_task()
        self._streams.add(task)
        try:
            status = await self._status(requests, serve)
            if status is not None:
                code, details, metadata = status
                await context.abort(code, details, metadata)
        finally:
            self._streams.discard(task)

    async def _status(
        self, requests: AsyncIterator[First], serve: Callable[[First], Awaitable[None]]
    ) -> Status | None:
        """Serve one stream; the status to end it with, or None when all went well."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                first = await anext(aiter(requests), None)
            if first is None:
                return None
            await serve(first)
        except TimeoutError:
            return to_status(TrunkUnavailableError(f"no hello within {_HELLO_SECONDS:g} s"))
        except DecodeError:
            return to_status(WireError("bytes that are no frame of this protocol"))
        except TrunkError as exc:
            logger.info("a stream was refused or ended: %s", type(exc).__name__)
            return to_status(exc)
        except Exception:
            logger.exception("a stream failed")
            return to_status(TrunkUnavailableError("the trunk failed; its log says why"))
        return None

    async def _serve_session(
        self, first: pb.ClientFrame, frames: AsyncIterator[pb.ClientFrame], context: StreamContext
    ) -> None:
        kind = first.WhichOneof("frame")
        if kind is None:
            raise WireError("a frame of an unknown kind")
        if kind != "hello":
            raise SequenceError(f"frame {kind}, expected hello")
        spec, ticket = read_hello(first.hello)
        session = self._admitted(spec, shown_by(context, ticket))
        try:
            resumed = await session.open()
            await context.write(welcome_frame(self._limits.session, resumed))
            limits = self._limits
            stream = SessionStream(
                frames,
                context,
                session,
                RequestReader(spec, limits.session, limits.hidden_size),
                HopRules(spec),
                self._codecs,
                limits.idle_timeout,
            )
            await stream.serve()
        finally:
            closing = session.close()
            closing.add_done_callback(lambda _: self._leave())
            await asyncio.shield(asyncio.wrap_future(closing))

    def _admitted(self, spec: SessionSpec, ticket: Ticket | None) -> AdmittedSession:
        with self._lock:
            if self._admit is not None:
                self._admit.verify(ticket, spec.purpose)
            if self._num_sessions >= self._limits.max_sessions:
                raise TrunkBusyError(  # and the ticket stays good for another attempt
                    f"{self._num_sessions} sessions are open, the trunk's limit. Try later, or"
                    " raise trunk.max-sessions"
                )
            if self._admit is not None:
                self._admit.claim(ticket, spec.purpose)
            self._num_sessions += 1
        return AdmittedSession(self._backend, spec, ticket, self._admit)

    def _leave(self) -> None:
        with self._lock:
            self._num_sessions -= 1
