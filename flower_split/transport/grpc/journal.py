"""A silo's journal of its requests: those that the trunk is not known to have taken, in order.

It holds the requests themselves, whose tensors do not change until they are answered, so that any
of them can be encoded once more for another stream.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.resuming import START, ResumePoint, digest_after
from flower_split.transport.messages import Answerable, Finish, Request

Owed = tuple[Answerable, Future[Any]]
"""A request, and the reply to come."""


@dataclass(kw_only=True, eq=False)
class Entry:
    """One request."""

    number: int
    request: Request
    owed: Owed | None
    """The same with its reply; None for one that gets none."""
    digest: bytes = b""
    """Empty until it was sent for the first time."""


class RequestJournal:
    """The requests of one session. Its methods may be called from several threads.

    The streams that carry them are numbered too. One of them takes requests at a time: from when
    `begin` named it until `end` does, or `begin` names a later one.
    """

    def __init__(self) -> None:
        # reentrant: a finalizer may close the session in the midst of it
        self._changed = threading.Condition(threading.RLock())
        self._entries: deque[Entry] = deque()
        self._first = 0  # number of the oldest entry
        self._before = START  # digest of the request before it
        self._received = 0
        self._next = self._taken = 0
        self._stream = self._ended = -1
        self._closed = False
        self.is_finished = False
        """Whether the reply to Finish was received."""

    @property
    def owes(self) -> bool:
        """Whether a reply is still to come."""
        with self._changed:
            return any(entry.owed is not None for entry in self._entries)

    def add(self, request: Request, owed: Owed | None = None) -> None:
        """Note a request that is to be sent after all earlier ones."""
        with self._changed:
            number = self._first + len(self._entries)
            self._entries.append(Entry(number=number, request=request, owed=owed))
            self._changed.notify_all()

    def begin(self, stream: int, taken: int = 0) -> None:
        """From now on `stream` takes requests, from the one of number `taken` on.

        Raises:
            WireError: the trunk cannot have taken that many, or has said before that it had taken
                more.
        """
        with self._changed:
            last = self._first + sum(1 for entry in self._entries if entry.digest)
            least = max(self._first, self._taken)
            if not least <= taken <= last:
                raise WireError(
                    f"the trunk says that it has taken {taken} requests, expected {least} to {last}"
                )
            self._stream, self._next, self._taken = stream, taken, taken
            self._changed.notify_all()

    def end(self, stream: int) -> None:
        """`stream` takes no more requests, nor does one before it."""
        with self._changed:
            self._ended = max(self._ended, stream)
            self._changed.notify_all()

    def carries(self, stream: int) -> bool:
        """Whether `stream` takes requests, or will yet."""
        with self._changed:
            return not self._closed and stream > self._ended and stream >= self._stream

    def next(self, stream: int) -> Entry | None:
        """The next request for `stream`; waits for it. None once there will be none."""
        with self._changed:
            while self.carries(stream):
                index = max(0, self._next - self._first)
                if self._stream == stream and index < len(self._entries):
                    self._next = self._first + index + 1
                    return self._entries[index]
                self._changed.wait()
            return None

    def note_sent(
        self, stream: int, entry: Entry, head: pb.ClientFrame, first: Callable[[], None]
    ) -> bool:
        """Complete `head`, the frame without chunks with which `stream` begins to send `entry`.

        Returns:
            Whether it is to be sent. `first` was then called, if it was never sent before.
        """
        with self._changed:
            index = entry.number - self._first
            if not self.carries(stream) or not 0 <= index < len(self._entries):
                return False
            if not entry.digest:
                first()
            before = self._entries[index - 1].digest if index else self._before
            entry.digest = digest_after(before, head)
            head.received = self._received
            return True

    def oldest(self) -> Owed | None:
        """The request to which the next reply belongs; None where none was sent."""
        with self._changed:
            oldest = next((entry for entry in self._entries if entry.owed is not None), None)
            return oldest.owed if oldest is not None and oldest.digest else None

    def note_answered(self) -> bool:
        """The reply to the oldest request was received whole; false where it was given up."""
        with self._changed:
            while self._entries:
                entry = self._entries.popleft()
                self._first, self._before = entry.number + 1, entry.digest
                if entry.owed is not None:
                    self._received += 1
                    self.is_finished = isinstance(entry.request, Finish)
                    return True
            return False

    def point(self) -> ResumePoint:
        """How far the session is."""
        with self._changed:
            sent = [entry.digest for entry in self._entries if entry.digest]
            return ResumePoint(
                received=self._received, first=self._first, digests=(self._before, *sent)
            )

    def close(self) -> list[Future[Any]]:
        """Nothing is sent any more; the replies that will not come."""
        with self._changed:
            entries, self._entries = self._entries, deque()
            self._closed = True
            self._changed.notify_all()
            return [entry.owed[1] for entry in entries if entry.owed is not None]
