"""A run's folder as page and metrics see it: read once a second at most, whoever looks."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flower_split.errors import DataError
from flower_split.reporting import read_result
from flower_split.reporting.events import EVENTS, EventTail
from flower_split.reporting.live import RunView, fragments
from flower_split.reporting.live.metrics import RunMetrics

RESULT = "result.json"
EVERY = 1.0
"""Seconds between two readings."""


class WatchedRun:
    """Reads the events and samples of a run's output folder. Not for several threads at once.

    Args:
        folder: The output folder; what is in it may still come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self._tail = EventTail(folder / EVENTS)
        self._view, self._metrics = RunView(), RunMetrics()
        self._samples: Mapping[int, str] = {}
        self._seen = 0
        self._parts: dict[str, str] = {}
        self._read = 0.0

    def parts(self) -> dict[str, str]:
        """The parts of the page as they are now."""
        self._look()
        return self._parts

    def metrics(self) -> bytes:
        """The same in Prometheus' text format, UTF-8."""
        self._look()
        return self._metrics.text(self._view)

    def _look(self) -> None:
        now = time.monotonic()
        if self._parts and now - self._read < EVERY:
            return
        self._read = now
        problem = ""
        try:
            events = self._tail.read()
            if self._tail.begun_anew:
                self._begin_anew()
            self._view.take(events)
            self._metrics.take(events)
        except DataError as error:
            problem = str(error)
            self._begin_anew()
        self._look_for_samples()
        self._parts = fragments(self._view, self._samples, now=time.time(), problem=problem)

    def _begin_anew(self) -> None:
        self._view, self._metrics = RunView(), RunMetrics()
        self._samples, self._seen = {}, 0

    def _look_for_samples(self) -> None:
        """Read them where there are some, and the result is another one than last time."""
        try:
            seen = os.stat(self.folder / RESULT).st_mtime_ns
        except OSError:
            return
        if self._view.samples == 0 or seen == self._seen:
            return
        self._seen = seen
        try:
            self._samples = read_result(self.folder / RESULT).samples
        except DataError:
            self._samples = {}
