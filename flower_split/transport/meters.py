"""The meters of a session: what its tensors weigh on the wire, and how long a silo waits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from flower_split.config.wire import HOPS
from flower_split.serialization.tables import ROLE_NAMES
from flower_split.transport.messages import (
    ADAPTER_DOWN,
    ADAPTER_UP,
    CONTEXT,
    PREFIX,
    PREFIX_GRAD,
    WireBytes,
)

_BY_THEMSELVES = {*HOPS, ADAPTER_UP, ADAPTER_DOWN, PREFIX, PREFIX_GRAD}
_COUNTED_AS: dict[int, str] = {
    role: name if name in _BY_THEMSELVES else CONTEXT for role, name in ROLE_NAMES.items()
}


class ByteMeter:
    """Payload of one session so far.

    A message counts as a whole: when it is handed to the wire, or when all of it has arrived.
    Each role is counted by one thread only, so there is no lock.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = dict.fromkeys(_COUNTED_AS.values(), 0)

    def add(self, role: int, num_bytes: int) -> None:
        """Count a tensor of `role`."""
        self._counts[_COUNTED_AS[role]] += num_bytes

    def read(self) -> WireBytes:
        """The counts so far."""
        return WireBytes(**self._counts)


class WaitMeter:
    """Waiting of one session so far. A silo waits in one thread at a time: there is no lock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def add(self, seconds: float) -> None:
        """Count time that was measured elsewhere."""
        self.seconds += seconds
