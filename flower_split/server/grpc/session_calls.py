"""A seat: one session's place at the backend, which computes in the compute thread alone."""

import asyncio
import logging
from concurrent.futures import Executor, Future
from contextlib import suppress

import torch

from flower_split.errors import FlowerSplitError, HandshakeError, TrunkBusyError, TrunkError
from flower_split.server.tickets import Admission
from flower_split.transport.base import BackendSession, QueueingSession, TrunkBackend
from flower_split.transport.grpc.replies import Reply
from flower_split.transport.grpc.requests import DropCache, Finish, Release, Request
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    SessionSpec,
    StepRequest,
    Ticket,
)

logger = logging.getLogger(__name__)


class Seat:
    """Opens, calls and closes one backend session, in this order and in one thread.

    Args:
        backend: Opens the session.
        spec: What the silo asks for.
        ticket: Who the silo is; claimed before the seat is made.
        admit: Asked before every call whether the ticket still counts.
        compute: An executor with one thread.
    """

    def __init__(
        self,
        backend: TrunkBackend,
        spec: SessionSpec,
        ticket: Ticket | None,
        admit: Admission | None,
        compute: Executor,
    ) -> None:
        self._backend = backend
        self._spec = spec
        self._ticket = ticket
        self._admit = admit
        self._compute = compute
        self._session: BackendSession | None = None
        self._closing: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> "Future[str]":
        """Open the session; the future holds the tag of the optimizer state that it resumes.

        The future fails with `HandshakeError` when the backend does not want the silo.
        """
        return self._compute.submit(self._open)

    def call(self, request: Request) -> "Future[Reply]":
        """The backend's answer to `request`, or the `TrunkError` that it raised.

        Called from the event loop. A pass waits in the backend's queue where it has one.
        """
        self._loop = asyncio.get_running_loop()
        session = self._session
        if not isinstance(request, ForwardRequest | BackwardRequest):
            return self._compute.submit(self._call, request)
        if not isinstance(session, QueueingSession):
            return self._compute.submit(self._call, request)
        answer: Future[Reply] = Future()
        try:
            self.check()
            answer = session.submit(request)
        except TrunkError as exc:
            answer.set_exception(exc)
            return answer
        self._compute.submit(self._work, session)
        return answer

    def close(self) -> "Future[None]":
        """Close the session, however far it came; at most once. The future never fails."""
        if self._closing is None:
            try:
                self._closing = self._compute.submit(self._close)
            except RuntimeError:  # the interpreter exits, and the compute thread is gone already
                self._closing = Future()
                self._close()
                self._closing.set_result(None)
        return self._closing

    def check(self) -> None:
        """Raise `TokenError` when the host has revoked the ticket."""
        if self._admit is not None:
            self._admit.check(self._ticket)

    def _open(self) -> str:
        try:
            self._session = self._backend.open(self._spec, self._ticket)
            return self._session.resumed
        except TrunkError:
            raise
        except FlowerSplitError as exc:
            raise HandshakeError(str(exc)) from exc

    def _work(self, session: QueueingSession) -> None:
        """Compute what is due, and come again when more will be."""
        delay = session.work()
        if delay == 0:
            self._again(session)
        elif delay is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and all sessions with it
                self._loop.call_soon_threadsafe(self._loop.call_later, delay, self._again, session)

    def _again(self, session: QueueingSession) -> None:
        with suppress(RuntimeError):  # the compute thread has ended, and all sessions with it
            self._compute.submit(self._work, session)

    def _call(self, request: Request) -> Reply:
        self.check()
        try:
            return self._answer(request)
        except torch.OutOfMemoryError as exc:
            raise TrunkBusyError(
                "the trunk's device is out of memory. Lower train.batch-size or train.in-flight"
            ) from exc
        finally:
            if isinstance(self._session, QueueingSession):
                self._again(self._session)  # what was freed may be what others wait for

    def _answer(self, request: Request) -> Reply:
        session = self._session
        if session is None:
            raise RuntimeError("a seat is opened before it is used")
        match request:
            case ForwardRequest():
                return session.forward(request)
            case BackwardRequest():
                return session.backward(request)
            case StepRequest():
                return session.step(request)
            case Release():
                session.release(request.microbatch)
            case DropCache():
                session.drop_cache(request.cache_id)
            case Finish():
                return session.finish()
        return None

    def _close(self) -> None:
        try:
            if self._session is not None:
                self._session.close()
        except Exception:
            logger.exception("closing a session failed")
        finally:
            if isinstance(self._session, QueueingSession):
                self._again(self._session)
            self._session = None
            if self._admit is not None:
                self._admit.spend(self._ticket)
