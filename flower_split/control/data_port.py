"""`DataPort`: what silos reach of a trunk service, each the run that its ticket is for."""

from collections.abc import Hashable
from concurrent.futures import Future

from flower_split.control.served_run import ServedRun
from flower_split.control.served_runs import ServedRuns
from flower_split.errors import TokenError
from flower_split.server.grpc.delivery import PartSource
from flower_split.server.grpc.service import SessionBounds
from flower_split.server.tickets import TicketBook
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import SessionSpec, Ticket, TicketPurpose


class DataPort:
    """`TrunkBackend`, `Admission` and `PackSource` of all runs of one service.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: ServedRuns) -> None:
        self._runs = runs
        self._nobody = TicketBook()

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        """A session of the run that the ticket is for; see `TrunkBackend`."""
        run = self._runs.of(ticket)
        if run is None:
            refused: Future[BackendSession] = Future()
            refused.set_exception(TokenError("the session's run has ended"))
            return refused
        return run.hosted.engine.open(spec, ticket)

    def bounds(self, ticket: Ticket | None) -> SessionBounds:
        """Bounds of the session that the ticket opens, as its run asked for them."""
        run = self._runs.of(ticket)
        if run is None:
            return SessionBounds(limits=self._runs.bounds.session)
        return SessionBounds(
            limits=run.hosted.engine.limits, reconnect_timeout=run.hosted.reconnect_timeout
        )

    def verify(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """See `Admission.verify`."""
        run = self._runs.of(ticket)
        self._book(run).verify(ticket, purpose)
        if run is not None and purpose != "deliver":
            self._runs.check_session(run)

    def claim(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """See `Admission.claim`."""
        run = self._runs.of(ticket)
        if run is not None and purpose != "deliver":
            self._runs.check_session(run)
        self._book(run).claim(ticket, purpose)
        if run is not None and ticket is not None and purpose != "deliver":
            run.open_tokens.add(ticket.token)

    def holder(self, ticket: Ticket) -> Hashable:
        """See `Admission.holder`."""
        return self._book(self._runs.of(ticket)).holder(ticket)

    def check(self, ticket: Ticket | None) -> None:
        """See `Admission.check`."""
        self._book(self._runs.of(ticket)).check(ticket)

    def spend(self, ticket: Ticket | None) -> None:
        """See `Admission.spend`."""
        self._book(self._runs.of(ticket)).spend(ticket)
        if ticket is not None:
            for run in self._runs.all:  # the ticket may be revoked by now
                run.open_tokens.discard(ticket.token)

    @property
    def digest(self) -> str:
        """See `PackSource`; empty where nothing is delivered yet."""
        pack = self._runs.pack
        return "" if pack is None else pack.digest

    def find(self, digest: str) -> PartSource | None:
        """See `PackSource`: a part of the one model, whichever run offers it."""
        pack = self._runs.pack
        return None if pack is None else pack.find(digest)

    def _book(self, run: ServedRun | None) -> TicketBook:
        return self._nobody if run is None else run.hosted.tickets
