"""The sessions that other streams may go on with, by their secrets."""

import asyncio
import hashlib
import hmac
from collections import deque

from flower_split.server.grpc.conversation import Conversation


class HeldSessions:
    """Conversations whose silos know a secret: open ones, and for a while those that have ended.

    What ended is kept for a silo that does not know it yet: with its last replies, or its fault.

    Args:
        most_ended: Conversations that are kept after their end; of more, the oldest go.
    """

    def __init__(self, most_ended: int) -> None:
        self._most_ended = most_ended
        self._entries: list[tuple[bytes, Conversation]] = []
        self._ended: deque[Conversation] = deque()

    def add(self, secret: bytes, conversation: Conversation) -> None:
        """Let `secret` lead to `conversation`."""
        self._entries.append((_digest(secret), conversation))

    def find(self, secret: bytes) -> Conversation | None:
        """The conversation to which `secret` leads."""
        digest = _digest(secret)
        found = None
        for other, conversation in self._entries:  # to the end, whichever matches
            if hmac.compare_digest(other, digest):
                found = conversation
        return found

    def note_ended(self, conversation: Conversation) -> None:
        """Its session is closed: keep what the silo may not know, as long as it would be held."""
        silo_knows = conversation.fault is None and not conversation.is_finished
        if silo_knows or not conversation.hold:
            self._forget(conversation)
            return
        self._ended.append(conversation)
        while len(self._ended) > self._most_ended:
            self._forget(self._ended[0])
        asyncio.get_running_loop().call_later(conversation.hold, self._forget, conversation)

    def _forget(self, conversation: Conversation) -> None:
        self._entries = [entry for entry in self._entries if entry[1] is not conversation]
        if conversation in self._ended:
            self._ended.remove(conversation)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
