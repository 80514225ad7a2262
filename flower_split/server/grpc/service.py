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
    ReplayError,
    SequenceError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkServicer
from flower_split.server.grpc.admitted import AdmittedSession
from flower_split.server.grpc.conversation import LOST, Conversation, Terms
from flower_split.server.grpc.delivery import DeliveryService
from flower_split.server.grpc.held_sessions import HeldSessions
from flower_split.server.grpc.peers import shown_by
from flower_split.server.grpc.progress import Deadlines
from flower_split.server.grpc.reply_memory import ReplyMemory
from flower_split.server.grpc.stream import BrokenLineError, SessionStream, breaking
from flower_split.server.tickets import Admission
from flower_split.transport.base import TrunkBackend
from flower_split.transport.grpc.handshake import check_version, read_hello, welcome_frame
from flower_split.transport.grpc.requests import RequestReader
from flower_split.transport.grpc.resuming import (
    LONGEST_HOLD,
    START,
    ResumePoint,
    read_resume,
    resumed_frame,
)
from flower_split.transport.grpc.status import Status, to_status
from flower_split.transport.messages import SessionLimits, SessionSpec, Ticket

logger = logging.getLogger(__name__)

StreamContext: TypeAlias = "grpc.aio.ServicerContext[pb.ClientFrame, pb.ServerFrame]"
DeliveryContext: TypeAlias = "grpc.aio.ServicerContext[pb.DeliverRequest, pb.DeliverReply]"
First = TypeVar("First", pb.ClientFrame, pb.DeliverRequest)

_HELLO_SECONDS = 10.0
# Replies that are kept for a silo that reconnects, beside those to the microbatches in flight.
_SPARE_REPLIES = 64
_BEGIN = ResumePoint(received=0, first=0, digests=(START,))


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
    """Seconds without progress after which a session is closed: without a pass, a step or an
    adapter call that is on its way, computed or answered."""
    transfer_timeout: float = 60.0
    """Seconds that a request which has begun to arrive may take to be complete, and a reply to be
    taken, beside those that its bytes take at `least_rate`."""
    least_rate: int = 1 << 16
    """Bytes a second."""
    reconnect_timeout: float = 4.0
    """Seconds for which a session whose stream broke is held for the silo that reconnects; 0 ends
    it with the stream."""

    def __post_init__(self) -> None:
        at_least("max_sessions", self.max_sessions, 1)
        at_least("max_deliveries", self.max_deliveries, 1)
        in_range("reconnect_timeout", self.reconnect_timeout, 0.0, LONGEST_HOLD)
        _ = self.deadlines

    @property
    def deadlines(self) -> Deadlines:
        """What every session's silo is given."""
        return Deadlines(
            idle=self.idle_timeout, transfer=self.transfer_timeout, rate=self.least_rate
        )


@dataclass(frozen=True, kw_only=True)
class SessionBounds:
    """Bounds of the session that one ticket opens."""

    limits: SessionLimits
    reconnect_timeout: float = 0.0
    """See `ServiceLimits.reconnect_timeout`."""


ENDED = "the trunk has ended; its run is over"
"""What silos are told whose sessions end with the trunk."""


class TrunkService(TrunkServicer):
    """The service on `backend`, for one event loop.

    Args:
        backend: Hosts the sessions.
        admit: Decides who may open a session; None lets everyone in.
        limits: Bounds of the service.
        codecs: Executor for decoding and encoding large tensors.
        delivery: Serves the model's delivery.
        bounds: Bounds of the session that a ticket opens; None for those of `limits`.
    """

    def __init__(
        self,
        backend: TrunkBackend,
        admit: Admission | None,
        limits: ServiceLimits,
        codecs: Executor,
        delivery: DeliveryService,
        bounds: Callable[[Ticket | None], SessionBounds] | None = None,
    ) -> None:
        self._bounds = bounds or self._same_for_all
        self._backend = backend
        self._admit = admit
        self._limits = limits
        self._codecs = codecs
        self._delivery = delivery
        self._streams: set[asyncio.Task[None] | None] = set()
        self._lock = threading.Lock()
        self._num_sessions = 0
        self._conversations: set[Conversation] = set()
        self._held = HeldSessions(limits.max_sessions)
        self._farewell: TrunkError | None = None

    @property
    def num_sessions(self) -> int:
        """Sessions that are open now."""
        return self._num_sessions

    async def Session(  # noqa: N802 - the name that the generated base class calls
        self, request_iterator: AsyncIterator[pb.ClientFrame], context: StreamContext
    ) -> None:
        """Serve one session's stream to its end."""

        async def serve(first: pb.ClientFrame) -> None:
            try:
                await self._serve_session(first, request_iterator, context)
            except BrokenLineError:
                # what gRPC itself ends the handlers of broken streams with, and expects of them
                raise asyncio.CancelledError from None

        await self._serve(request_iterator, context, serve)

    async def Deliver(  # noqa: N802 - the name that the generated base class calls
        self, request_iterator: AsyncIterator[pb.DeliverRequest], context: DeliveryContext
    ) -> None:
        """Serve one stream of the model's delivery to its end."""

        async def serve(first: pb.DeliverRequest) -> None:
            await self._delivery.serve(first, request_iterator, context)

        await self._serve(request_iterator, context, serve)

    def retire(self, why: str = ENDED) -> None:
        """Open no more sessions, and hold none: from now on one ends with its stream.

        Args:
            why: What silos are told; the first reason counts.
        """
        if self._farewell is None:
            self._farewell = TrunkUnavailableError(why)
        for conversation in [*self._conversations]:
            conversation.hold_no_more(self._farewell)

    def dismiss(self) -> None:
        """End every session, and say so to its silo."""
        self.retire()
        for conversation in [*self._conversations]:
            conversation.end(self._farewell, at_once=True)

    async def drain(self) -> None:
        """Wait until every stream has ended and every session is closed."""
        while self._streams or self._conversations:
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
        with breaking():
            # By itself: a first frame whose writing is cancelled would leave gRPC in doubt whether
            # this was sent, and without a way to send a status.
            await context.send_initial_metadata(())
        match first.WhichOneof("frame"):
            case "hello":
                attempt, point = first.hello.attempt, _BEGIN
                conversation = self._begun(first.hello, context)
            case "resume":
                attempt, point = first.resume.attempt, read_resume(first.resume)
                conversation = self._resumed(first.resume, context)
            case None:
                raise WireError("a frame of an unknown kind")
            case kind:
                raise SequenceError(f"frame {kind}, expected hello")
        conversation.check(attempt, point)

        limits = self._bounds(conversation.ticket).limits

        def greeting() -> pb.ServerFrame:
            if first.HasField("resume"):
                return resumed_frame(conversation.taken)
            return welcome_frame(limits, conversation.resumed, reconnect_seconds=conversation.hold)

        reader = RequestReader(conversation.spec, limits, self._limits.hidden_size)
        stream = SessionStream(frames, context, conversation, reader, greeting)
        await conversation.carry(stream, attempt, point)

    def _begun(self, hello: pb.Hello, context: StreamContext) -> Conversation:
        """The session that `hello` opens, or has opened on a stream that broke."""
        spec, ticket = read_hello(hello)
        ticket = shown_by(context, ticket)
        found = self._held.find(hello.secret) if hello.secret else None
        if found is not None:
            if (found.spec, found.ticket) != (spec, ticket):
                raise ReplayError("the hello that was sent again is another one")
            return found
        session = self._admitted(spec, ticket)
        bounds, width = self._bounds(ticket), self._limits.hidden_size
        limits = bounds.limits
        most_bytes = None if width is None else 8 * width * limits.max_message_tokens
        conversation = Conversation(
            session,
            spec,
            ticket,
            ReplyMemory(_SPARE_REPLIES + 2 * limits.max_in_flight, most_bytes),
            Terms(
                deadlines=self._limits.deadlines,
                hold=bounds.reconnect_timeout if hello.secret else 0.0,
                codecs=self._codecs,
            ),
            self._leave,
        )
        self._conversations.add(conversation)
        if hello.secret:
            self._held.add(hello.secret, conversation)
        return conversation

    def _resumed(self, resume: pb.Resume, context: StreamContext) -> Conversation:
        """The session that a stream goes on with, whose peer has the certificate that opened it."""
        check_version(resume.protocol_version)
        conversation = self._held.find(resume.secret)
        if conversation is None or conversation.ticket != shown_by(context, conversation.ticket):
            raise TrunkUnavailableError(LOST)
        return conversation

    def _admitted(self, spec: SessionSpec, ticket: Ticket | None) -> AdmittedSession:
        with self._lock:
            if self._farewell is not None:
                raise self._farewell
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

    def _same_for_all(self, ticket: Ticket | None) -> SessionBounds:
        limits = self._limits
        return SessionBounds(limits=limits.session, reconnect_timeout=limits.reconnect_timeout)

    def _leave(self, conversation: Conversation) -> None:
        self._conversations.discard(conversation)
        self._held.note_ended(conversation)
        with self._lock:
            self._num_sessions -= 1
