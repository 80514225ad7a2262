"""A session's memory of its replies: those that the silo is not known to have, in order."""

from collections import deque

from flower_split.errors import WireError
from flower_split.transport.grpc.replies import EncodedReply

# What a reply takes beside its tensors.
_OWN_BYTES = 1024


class ReplyMemory:
    """Encoded replies, numbered from 0 on. What is beyond the bounds is forgotten, oldest first.

    Args:
        most: Replies that are kept at most.
        most_bytes: Bytes of them; the newest is kept whatever it has. None for no bound.
    """

    def __init__(self, most: int, most_bytes: int | None) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: deque[EncodedReply] = deque()
        self._num_bytes = 0
        self._first = 0  # number of the oldest
        self._next = 0  # number of the next to be sent on the stream
        self._begun = 0

    @property
    def num_unsent(self) -> int:
        """Replies that the stream has not begun to send."""
        return self._first + len(self._kept) - self._next

    @property
    def num_begun(self) -> int:
        """Replies of which any part was sent, on any stream."""
        return self._begun

    def add(self, reply: EncodedReply) -> None:
        """Keep a reply, which is then the next after all others."""
        self._kept.append(reply)
        self._num_bytes += _size(reply)
        while len(self._kept) > 1 and self._is_beyond():
            if self._next <= self._first:  # none of it was sent
                break
            self._forget()

    def next(self) -> EncodedReply | None:
        """The next reply to be sent; None while there is none."""
        index = self._next - self._first
        if index >= len(self._kept):
            return None
        self._next += 1
        self._begun = max(self._begun, self._next)
        return self._kept[index]

    def acknowledge(self, received: int) -> None:
        """The silo has received so many replies whole, and will not ask for them again.

        Raises:
            WireError: they were not sent to it.
        """
        self._check_sent(received)
        while self._first < received and self._first < self._next:
            self._forget()

    def has_from(self, received: int) -> bool:
        """Whether a silo that has received so many replies can have all others.

        Raises:
            WireError: they were not sent to it.
        """
        self._check_sent(received)
        return received >= self._first

    def rewind(self, received: int) -> None:
        """Another stream sends them again, from that number on, all of which are kept."""
        self._next = received
        self.acknowledge(received)

    def clear(self) -> None:
        """Forget them all."""
        self._kept.clear()
        self._first = self._next = self._begun
        self._num_bytes = 0

    def _check_sent(self, received: int) -> None:
        if received > self._begun:
            raise WireError(f"{received} replies received, and {self._begun} were sent")

    def _is_beyond(self) -> bool:
        beyond = self._most_bytes is not None and self._num_bytes > self._most_bytes
        return beyond or len(self._kept) > self._most

    def _forget(self) -> None:
        self._num_bytes -= _size(self._kept.popleft())
        self._first += 1


def _size(reply: EncodedReply) -> int:
    return _OWN_BYTES + sum(tensor.payload.nbytes for tensor in reply.tensors)
