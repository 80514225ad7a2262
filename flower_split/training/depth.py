"""Depth: how many microbatches are in flight, as asked for or by measurement.

Numbers do not depend on it, so it can be tried out while the training already goes on. It starts
at 2 and doubles for as long as the silo waits and doubling makes it faster; memory at both parties
grows with it.
"""

import logging

log = logging.getLogger(__name__)

SAMPLES = 2
"""Optimizer steps measured at each depth. The fastest counts: a disturbance only slows one down."""
WORTH = 0.03
"""Share of a step's time that waiting must take, and that doubling must save, to be worth it."""


class Depth:
    """The depth of the next optimizer step.

    Args:
        wanted: Microbatches in flight; 0 measures.
        limit: What the trunk allows, or a step has; more is never taken.
    """

    def __init__(self, wanted: int, limit: int) -> None:
        self._limit = max(1, limit)
        self.value = min(wanted or 2, self._limit)
        self.settled = wanted > 0 or self._limit == 1
        self._slower: tuple[int, float] | None = None
        self._rates: list[float] = []
        self._warm = False

    def observe(self, *, tokens: int, seconds: float, waited: float) -> None:
        """Note how the step at the present depth went; the very first step is not counted.

        Args:
            tokens: Positions of the step, padding included.
            seconds: Time that the step took.
            waited: Seconds of it that the silo waited for the trunk.
        """
        if self.settled:
            return
        if not self._warm:
            self._warm = True
            return
        self._rates.append(tokens / max(seconds, 1e-9))
        if len(self._rates) < SAMPLES:
            return
        rate = max(self._rates)
        self._rates.clear()
        if self._slower is not None and rate < self._slower[1] * (1 + WORTH):
            self._settle(self._slower[0])
        elif waited < WORTH * seconds or self.value == self._limit:
            self._settle(self.value)
        else:
            self._slower = (self.value, rate)
            self.value = min(2 * self.value, self._limit)

    def _settle(self, value: int) -> None:
        self.value = value
        self.settled = True
        log.info("%d microbatches in flight, at most %d allowed", value, self._limit)
