"""Tickets: who may open a session, each once."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from flower_split.errors import ForeignRunError, TokenError
from flower_split.transport.messages import Purpose, Ticket


class Admission(Protocol):
    """Decides who may open a session. Called from several threads."""

    def claim(self, ticket: Ticket | None, purpose: Purpose) -> None:
        """Let a session begin.

        Raises:
            TokenError: there is no ticket, or it is unknown, used or expired.
            ForeignRunError: the token was issued to another run, node, round or purpose.
        """
        ...

    def check(self, ticket: Ticket | None) -> None:
        """Raise `TokenError` when the ticket of an open session was revoked."""
        ...

    def spend(self, ticket: Ticket | None) -> None:
        """Take note that the ticket's session has ended."""
        ...


class _State(Enum):
    ISSUED = auto()
    OPEN = auto()
    SPENT = auto()
    REVOKED = auto()


@dataclass(kw_only=True)
class _Entry:
    digest: bytes
    run_id: int
    node_id: int
    server_round: int
    purpose: Purpose | None
    state: _State = field(default=_State.ISSUED)


class TicketBook:
    """An `Admission` by random tokens, good for one session each.

    Tokens are kept as hashes and compared in constant time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    def issue(
        self, run_id: int, node_id: int, server_round: int, purpose: Purpose | None = None
    ) -> Ticket:
        """A new ticket; revokes the one that was issued for the same four before.

        Without a purpose the ticket opens a session of either kind.
        """
        token = secrets.token_urlsafe(32)
        entry = _Entry(
            digest=_digest(token),
            run_id=run_id,
            node_id=node_id,
            server_round=server_round,
            purpose=purpose,
        )
        with self._lock:
            for other in self._entries:
                if _key(other) == _key(entry):
                    other.state = _State.REVOKED
            self._entries.append(entry)
        return Ticket(run_id=run_id, node_id=node_id, server_round=server_round, token=token)

    def claim(self, ticket: Ticket | None, purpose: Purpose) -> None:
        """Let the ticket's session begin; see `Admission.claim`."""
        if ticket is None or not ticket.token:
            raise TokenError("the trunk asks for a ticket and the silo brought none")
        with self._lock:
            entry = self._find(ticket)
            if entry is None:
                raise TokenError("the session token is unknown or expired")
            for name in ("run_id", "node_id", "server_round"):
                if getattr(entry, name) != getattr(ticket, name):
                    raise ForeignRunError(f"the session token was issued for another {name}")
            if entry.purpose not in (None, purpose):
                raise ForeignRunError("the session token was issued for another purpose")
            if entry.state is not _State.ISSUED:
                reason = "expired" if entry.state is _State.REVOKED else "was used already"
                raise TokenError(f"the session token {reason}; every session needs its own")
            entry.state = _State.OPEN

    def check(self, ticket: Ticket | None) -> None:
        """Raise `TokenError` unless the ticket's session is open and was not revoked."""
        with self._lock:
            entry = None if ticket is None else self._find(ticket)
            if entry is None or entry.state is not _State.OPEN:
                raise TokenError("the session token expired; the host has closed the round")

    def spend(self, ticket: Ticket | None) -> None:
        """Take note that the ticket's session has ended."""
        with self._lock:
            entry = None if ticket is None else self._find(ticket)
            if entry is not None and entry.state is _State.OPEN:
                entry.state = _State.SPENT

    def revoke(self, ticket: Ticket) -> None:
        """Make the ticket worthless; its session, if one is open, ends within a second."""
        self._revoke(lambda entry: hmac.compare_digest(entry.digest, _digest(ticket.token)))

    def end_round(self, server_round: int) -> None:
        """Revoke all tickets of this round and of earlier ones."""
        self._revoke(lambda entry: entry.server_round <= server_round)

    def _revoke(self, chosen: Callable[[_Entry], bool]) -> None:
        """Forget the chosen entries: an unknown token is refused as an expired one is."""
        with self._lock:
            self._entries = [entry for entry in self._entries if not chosen(entry)]

    def _find(self, ticket: Ticket) -> _Entry | None:
        digest = _digest(ticket.token)
        found = None
        for entry in self._entries:  # to the end, whichever matches
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _key(entry: _Entry) -> tuple[int, int, int, Purpose | None]:
    return entry.run_id, entry.node_id, entry.server_round, entry.purpose
