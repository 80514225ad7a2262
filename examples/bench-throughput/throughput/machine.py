"""The machine while a benchmark runs: what others use of it."""

import os
import time
from collections.abc import Iterable

import psutil


class OthersMeter:
    """The share of the machine's cores that processes other than the given ones use.

    Args:
        ours: Process ids of the benchmark.
    """

    def __init__(self, ours: Iterable[int]) -> None:
        self._ours = [psutil.Process(pid) for pid in ours]
        self._read = self._now()

    def lap(self) -> float:
        """The share since the last call, or since the meter was made."""
        before, self._read = self._read, self._now()
        wall, busy, own = (after - old for after, old in zip(self._read, before, strict=True))
        return max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9)

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = times.user + times.system
        # What a virtual machine's neighbours took is used by others too.
        busy += getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0)
        used = [process.cpu_times() for process in self._ours]
        return time.monotonic(), busy, sum(one.user + one.system for one in used)
