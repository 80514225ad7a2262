"""Tickets: who may open a session, each once."""

import hashlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from flower_split.errors import ForeignRunError, TokenError
from flower_split.transport.messages import Ticket, TicketPurpose

logger = logging.getLogger(__name__)


class Admission(Protocol):
    """Decides who may open a session. Called from several threads."""

    def verify(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """Raise what `claim` would raise now, and change nothing."""
        ...

    def claim(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """Let a session begin.

        Raises:
            TokenError: there is no ticket, or it is unknown, used or expired.
            ForeignRunError: the token was issued to another run, node, round or purpose, or its
                node has shown another certificate.
        """
        ...

    def check(self, ticket: Ticket | None) -> None:
        """Raise `TokenError` when the ticket of an open session was revoked."""
        ...

    def holder(self, ticket: Ticket) -> Hashable:
        """Who has a ticket that was admitted: equal for all of one silo in one run, and for no
        others, also where two runs were given equal ids."""
        ...

    def spend(self, ticket: Ticket | None) -> None:
        """Take note that the ticket's session has ended."""
        ...


# One wording for all: it tells a stranger nothing of what exists.
_NOT_VALID = (
    "no session without a valid token: it is missing, unknown, used or expired. Every session "
    "needs a new one, which the server sends in its message"
)
_FOREIGN = (
    "the token was issued for another run, node, round or purpose, or its node has shown another "
    "certificate in this run"
)


class _State(Enum):
    ISSUED = auto()
    OPEN = auto()
    SPENT = auto()


@dataclass(kw_only=True)
class _Entry:
    digest: bytes
    run_id: int
    node_id: int
    server_round: int
    purpose: TicketPurpose | None
    expires: float
    number: int
    state: _State = field(default=_State.ISSUED)


class TicketBook:
    """An `Admission` by random tokens of 256 bits, good for one session each.

    Tokens are kept as hashes and compared in constant time. Where silos have certificates, the one
    with which a node's first ticket of a run is claimed is the node's for that run: none of its
    tickets is good with another one.

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        self._certificates: dict[tuple[int, int], str] = {}

    def issue(
        self,
        run_id: int,
        node_id: int,
        server_round: int,
        purpose: TicketPurpose | None = None,
        *,
        seconds: float = math.inf,
        number: int = 0,
    ) -> Ticket:
        """A new ticket; revokes the one that was issued for the same five before.

        Args:
            run_id: The run, node and round that the ticket is for.
            node_id: See `run_id`.
            server_round: See `run_id`.
            purpose: What it opens; None for a session of any kind, but no delivery.
            seconds: How long it is good; a session that is still open then ends.
            number: Tickets that differ in it only are good side by side, each once.
        """
        token = secrets.token_urlsafe(32)
        now = self._clock()
        entry = _Entry(
            digest=_digest(token),
            run_id=run_id,
            node_id=node_id,
            server_round=server_round,
            purpose=purpose,
            expires=now + seconds,
            number=number,
        )
        key = _key(entry)
        self._forget(lambda other: _key(other) == key or other.expires <= now)
        with self._lock:
            self._entries.append(entry)
        return Ticket(run_id=run_id, node_id=node_id, server_round=server_round, token=token)

    def verify(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """Raise what `claim` would raise now; see `Admission.verify`."""
        with self._lock:
            self._admissible(ticket, purpose)

    def claim(self, ticket: Ticket | None, purpose: TicketPurpose) -> None:
        """Let the ticket's session begin; see `Admission.claim`."""
        with self._lock:
            entry = self._admissible(ticket, purpose)
            entry.state = _State.OPEN
            if ticket is not None:
                self._certificates.setdefault((entry.run_id, entry.node_id), ticket.certificate)

    def holder(self, ticket: Ticket) -> Hashable:
        """The silo of this book that has the ticket; see `Admission.holder`."""
        return self, ticket.run_id, ticket.node_id

    def check(self, ticket: Ticket | None) -> None:
        """Raise `TokenError` unless the ticket's session is open and was not revoked."""
        with self._lock:
            entry = None if ticket is None else self._find(ticket)
            if entry is None or entry.state is not _State.OPEN or entry.expires <= self._clock():
                raise TokenError("the session token expired; the host has closed the round")

    def spend(self, ticket: Ticket | None) -> None:
        """Take note that the ticket's session has ended."""
        with self._lock:
            entry = None if ticket is None else self._find(ticket)
            if entry is not None and entry.state is _State.OPEN:
                entry.state = _State.SPENT

    def revoke(self, ticket: Ticket) -> None:
        """Make the ticket worthless; its session, if one is open, ends within a second."""
        digest = _digest(ticket.token)
        self._forget(lambda entry: hmac.compare_digest(entry.digest, digest))

    def end_round(self, server_round: int) -> None:
        """Revoke all tickets of this round and of earlier ones."""
        self._forget(lambda entry: entry.server_round <= server_round)

    def _forget(self, chosen: Callable[[_Entry], bool]) -> None:
        """Revoke the chosen entries: an unknown token is refused as an expired one is."""
        with self._lock:
            self._entries = [entry for entry in self._entries if not chosen(entry)]

    def _admissible(self, ticket: Ticket | None, purpose: TicketPurpose) -> _Entry:
        entry = None if ticket is None or not ticket.token else self._find(ticket)
        if ticket is None or entry is None or entry.expires <= self._clock():
            raise TokenError(_NOT_VALID)
        if entry.state is not _State.ISSUED:
            raise TokenError(_NOT_VALID)
        holder = entry.run_id, entry.node_id, entry.server_round
        if holder != (ticket.run_id, ticket.node_id, ticket.server_round):
            raise ForeignRunError(_FOREIGN)
        known = self._certificates.get((entry.run_id, entry.node_id), ticket.certificate)
        if known != ticket.certificate:
            logger.warning(
                "node %d came with another certificate than before in this run: its token was "
                "refused. A silo's certificate is renewed between two runs",
                entry.node_id,
            )
            raise ForeignRunError(_FOREIGN)
        any_session = entry.purpose is None and purpose != "deliver"
        if entry.purpose != purpose and not any_session:
            raise ForeignRunError(_FOREIGN)
        return entry

    def _find(self, ticket: Ticket) -> _Entry | None:
        digest = _digest(ticket.token)
        found = None
        for entry in self._entries:  # to the end, whichever matches
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _key(entry: _Entry) -> tuple[int, int, int, TicketPurpose | None, int]:
    return entry.run_id, entry.node_id, entry.server_round, entry.purpose, entry.number
