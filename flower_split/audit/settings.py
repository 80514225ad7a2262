"""Settings of an audit: how much is tried, and how long that may take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range
from flower_split.errors import ConfigError

LEAST_DOCUMENTS = 8
"""With fewer, an interval over documents says nothing."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How large an audit is."""

    documents: int = 32
    """Texts that are attacked."""
    tokens: int = 48
    """Tokens of a text that are looked at; `train.max-length` where that is less."""
    public_documents: int = 1200
    """Texts at most that an inverter is trained on."""
    search_documents: int = 16
    """Texts on which the exact search is tried."""
    inverter_steps: int = 2500
    """Steps of an inverter at most; one that still improves then is under-trained."""
    seed: int = 0
    """Of everything random, but for the noise at the cuts, which nobody can draw again."""

    def __post_init__(self) -> None:
        at_least("--documents", self.documents, LEAST_DOCUMENTS)
        at_least("--tokens", self.tokens, 8)
        at_least("public_documents", self.public_documents, 16)
        at_least("search_documents", self.search_documents, 1)
        at_least("inverter_steps", self.inverter_steps, 1)
        at_least("--seed", self.seed, 0)
        if self.seed >= 2**32:
            raise ConfigError(f"--seed must be below 2**32, not {self.seed}")


class BudgetUsedUpError(Exception):
    """Not a user's error: what was found before counts, and the audit says what was not run."""


class Budget:
    """Minutes that an audit may take, counted from when it is made.

    Args:
        minutes: How many; at most a week.
        clock: Seconds; a test has one of its own.

    Raises:
        ConfigError: `minutes` is no number above 0.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        in_range("--budget", minutes, 0.0, 7 * 24 * 60.0, open_low=True)
        self.minutes = minutes
        self._clock = clock
        self._began = clock()

    @property
    def spent(self) -> float:
        """Seconds."""
        return self._clock() - self._began

    def check(self) -> None:
        """Raise `BudgetUsedUpError` where there is no time left."""
        if self.spent > self.minutes * 60:
            raise BudgetUsedUpError
