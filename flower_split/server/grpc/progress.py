"""How long a silo may take: for what is on its way, and for doing something at all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """What a session's silo is given."""

    idle: float = 600.0
    """Seconds without progress: a pass, a step or an adapter call that is on its way, computed or
    answered."""
    transfer: float = 60.0
    """Seconds for a request that has begun to arrive, and for a reply to be taken, beside those
    that its bytes take at `rate`."""
    rate: int = 1 << 16
    """Bytes a second."""

    def __post_init__(self) -> None:
        in_range("idle_timeout", self.idle, 0.0, 1e7, open_low=True)
        in_range("transfer_timeout", self.transfer, 0.0, 1e7, open_low=True)
        at_least("least_rate", self.rate, 1)

    def of(self, num_bytes: int) -> float:
        """Seconds for a request or a reply of so many bytes."""
        return self.transfer + num_bytes / self.rate


class Progress:
    """When a session last made progress.

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._working = 0

    @contextmanager
    def working(self, *, counts: bool = True) -> Iterator[None]:
        """The session is not idle as long as the block lasts.

        Args:
            counts: Whether it has made progress then; else its idle time goes on as it was.
        """
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if counts:
                self.note()

    def note(self) -> None:
        """The session has made progress."""
        self._last = self._clock()

    @property
    def idle_seconds(self) -> float:
        """For how long the session has been idle; 0 while it works."""
        return 0.0 if self._working else self._clock() - self._last
