"""The clock: how long each kind of work took in one process, and how often it was done.

Two times are kept: the wall clock's, and the processor time of the thread that did the work. On a
machine that others use too, only the second is the work's own.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Times = dict[str, tuple[float, float]]
"""Wall-clock and processor seconds by kind of work."""


class Clock:
    """Adds up by label, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def lap(self) -> Times:
        """What was added since the last call."""
        with self._lock:
            times, self._times = dict(self._times), defaultdict(lambda: (0.0, 0.0))
        return times

    @contextmanager
    def measured(self, label: str) -> Iterator[None]:
        """Add what the block takes to `label`."""
        wall, used = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall, used = time.perf_counter() - wall, time.thread_time() - used
            with self._lock:
                before = self._times[label]
                self._times[label] = (before[0] + wall, before[1] + used)

    def timed(self, label: str, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, measured at every call."""

        @wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.measured(label):
                return function(*args, **kwargs)

        return measured
