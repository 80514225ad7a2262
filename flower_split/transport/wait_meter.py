"""The wait meter: seconds in which a silo had nothing to do but to wait for the trunk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
