"""Pauses between attempts to reach a trunk: growing, and not the same for all silos."""

import random
from collections.abc import Iterator

FIRST, LONGEST = 0.1, 5.0
"""Seconds at most of the first pause, and of every one."""


def growing_pauses() -> Iterator[float]:
    """Seconds to wait before the next attempt, without end."""
    pause = FIRST
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST)
