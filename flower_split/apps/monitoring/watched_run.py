"""A run's folder as the live page sees it: read once a second at most, whoever looks."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flower_split.errors import DataError
from flower_split.reporting import read_result
from flower_split.reporting.events import EVENTS, EventTail
from flower_split.reporting.live import RunView, fragments

RESULT = "result.json"
EVERY = 1.0
"""Seconds between two readings."""


class WatchedRun:
    """Reads the events and samples of a run's output folder. Not for several threads at once.

    Args:
        folder: The output folder; what is in it may still come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tail = EventTail(folder / EVENTS)
        self._view = RunView()
        self._samples: Mapping[int, str] = {}
        self._seen = 0
        self._parts: dict[str, str] = {}
        self._read = 0.0

    def parts(self) -> dict[str, str]:
        """The parts of the page as they are now."""
        now = time.monotonic()
        if not self._parts or now - self._read >= EVERY:
            self._read = now
            self._parts = self._look()
        return self._parts

    def _look(self) -> dict[str, str]:
        problem = ""
        try:
            events = self._tail.read()
            if self._tail.begun_anew:
                self._view, self._samples, self._seen = RunView(), {}, 0
            self._view.take(events)
        except DataError as error:
            problem, self._view = str(error), RunView()
        self._look_for_samples()
        return fragments(self._view, self._samples, now=time.time(), problem=problem)

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
