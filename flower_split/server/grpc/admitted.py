"""An admitted session: one session at the backend, from its ticket's claim to its end."""

import asyncio
import logging
from concurrent.futures import Future

import torch

from flower_split.errors import FlowerSplitError, HandshakeError, TrunkError
from flower_split.server.compute.queue import mapped
from flower_split.server.tickets import Admission
from flower_split.transport.base import BackendSession, TrunkBackend
from flower_split.transport.messages import Reply, Request, SessionSpec, Ticket

logger = logging.getLogger(__name__)


class AdmittedSession:
    """Opens, asks and closes one backend session; closes it once, however its stream ends.

    Args:
        backend: Opens the session, which begins at once.
        spec: What the silo asks for.
        ticket: Who the silo is; claimed before this is made.
        admit: Asked before every request whether the ticket still counts.
    """

    def __init__(
        self,
        backend: TrunkBackend,
        spec: SessionSpec,
        ticket: Ticket | None,
        admit: Admission | None,
    ) -> None:
        self._ticket = ticket
        self._admit = admit
        self._opening = backend.open(spec, ticket)
        self._closed: Future[None] = Future()

    async def open(self) -> str:
        """Wait until the session is open; the tag of the session state that it resumes from.

        Raises:
            HandshakeError: the backend does not want the silo.
        """
        try:
            return (await asyncio.wrap_future(self._opening)).resumed
        except TrunkError:
            raise
        except FlowerSplitError as exc:
            raise HandshakeError(str(exc)) from exc

    @property
    def depth(self) -> int:
        """Passes that the open session takes before the first of them is answered."""
        return self._opening.result().depth

    async def ask(self, request: Request) -> Reply:
        """The backend's reply to `request`.

        Raises:
            TrunkError: the request failed, or the host has revoked the ticket.
        """
        self.check()
        try:
            return await asyncio.wrap_future(self._opening.result().submit(request))
        except torch.OutOfMemoryError as exc:
            raise mapped(exc) from exc

    def check(self) -> None:
        """Raise `TokenError` when the host has revoked the ticket."""
        if self._admit is not None:
            self._admit.check(self._ticket)

    def close(self) -> "Future[None]":
        """Close the session, however far it came; to be called once. The future never fails."""
        self._opening.cancel()  # does nothing once it has begun
        self._opening.add_done_callback(self._close_opened)
        return self._closed

    def _close_opened(self, opening: "Future[BackendSession]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._end()
            return
        try:
            closing = opening.result().close()
        except Exception:
            logger.exception("closing a session failed")
            self._end()
        else:
            closing.add_done_callback(self._end)

    def _end(self, closing: "Future[None] | None" = None) -> None:
        fault = None if closing is None else closing.exception()
        if fault is not None:
            logger.error("closing a session failed", exc_info=fault)
        if self._admit is not None:
            self._admit.spend(self._ticket)
        self._closed.set_result(None)
