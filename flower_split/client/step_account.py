"""The account of a silo's steps of DP-SGD, and the ε at which there are no more.

It outlives processes, sessions that failed and runs that were resumed: a step is in its file before
it is taken. The file counts ahead, in blocks, and a session that ends takes back what it did not
use; where one never ended, the rest of its block counts as if it had been taken.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flower_split.client.durable_counts import ID, DurableCounts
from flower_split.client.state.folder import StateFolder
from flower_split.config.privacy import DpConfig
from flower_split.errors import ConfigError
from flower_split.privacy import SampledGaussians, check_accountant
from flower_split.reporting.counters import DP_ACCOUNT, DP_EXAMPLES, DP_STEPS

logger = logging.getLogger(__name__)

FOLDER, FILE = "dp", "steps.json"
BLOCK = 32
"""Steps by which the file is ahead of what was taken."""
_STEPS, _EXAMPLES = "steps", "examples"


class StepAccount:
    """The account of one silo in one run and those that resume it.

    Args:
        counts: Its file.
        dp: The run's settings.
        expected: Examples that a step draws in the mean.
        silo: The silo's name.
    """

    def __init__(self, counts: DurableCounts, dp: DpConfig, *, expected: int, silo: str) -> None:
        self._counts = counts
        self._dp = dp
        self._expected = expected
        self._silo = silo
        self._guard = threading.Lock()
        self._spare = 0
        self._most: int | None = None
        if dp.max_epsilon:
            check_accountant("dp.max-epsilon", where="where the ClientApp runs")

    @classmethod
    def of(
        cls, states: StateFolder, origin_run_id: str, silo: str, dp: DpConfig, *, expected: int
    ) -> "StepAccount":
        """That of a silo, with those of runs that nobody has resumed for too long removed.

        Raises:
            StateError: it cannot be kept, or its file is damaged.
            UnsafeFolderError: it is another user's, or others may write into it.
            ConfigError: the accountant is not installed.
        """
        counts = DurableCounts.of(
            states,
            (FOLDER, origin_run_id, silo),
            file=FILE,
            names=(_STEPS, _EXAMPLES),
            what="the account of the steps of DP-SGD",
        )
        return cls(counts, dp, expected=expected, silo=silo)

    def begin(self, *, examples: int, steps: int, rounds_left: int) -> None:
        """A round begins, whose steps draw from so many examples.

        Args:
            examples: That the silo trains on.
            steps: Of the round.
            rounds_left: Rounds of the run that are not yet made, this one included.

        Raises:
            ConfigError: the round would go beyond `dp.max-epsilon`.
            StateError: the account cannot be written.
        """
        with self._guard:
            counted = self._counts.change(
                lambda held: {**held, _EXAMPLES: min(held[_EXAMPLES] or examples, examples)}
            )
        most = self._dp.max_epsilon
        if not most:
            return
        taken = counted[_STEPS]
        release = self._release(counted, taken + steps * rounds_left)
        allowed = release.most_times(self._dp.delta, most)
        self._most = allowed
        if taken + steps > allowed:
            wanted = release.least_noise(self._dp.delta, most)
            after = self._release(counted, taken + steps).epsilon(self._dp.delta)
            raise ConfigError(
                f"silo {self._silo} trains no further round: its {steps} steps on {examples} "
                f"examples, after {taken} that it has taken, would come to ε = {after:.3g}, and "
                f"dp.max-epsilon is {most:g}. A new run of as many steps stays within it with "
                f"dp.noise {wanted:g}; fewer steps (train.local-steps, num-server-rounds) or more "
                "examples need less"
            )
        if allowed < taken + steps * rounds_left:
            logger.warning(
                "silo %s: the run ends after %d of its %d further rounds, because ε would go "
                "beyond dp.max-epsilon %g",
                *(self._silo, (allowed - taken) // steps, rounds_left, most),
            )

    def taking(self) -> None:
        """Count a step that is about to be taken.

        Raises:
            ConfigError: it would go beyond `dp.max-epsilon`.
            StateError: it cannot be counted, so it must not be taken.
        """
        with self._guard:
            if not self._spare:
                held = self._counts.change(lambda now: {**now, _STEPS: now[_STEPS] + BLOCK})
                self._spare = BLOCK
                self._ahead = held[_STEPS]
            if self._most is not None and self._ahead - self._spare >= self._most:
                raise ConfigError(
                    f"silo {self._silo} takes no further step: ε would go beyond dp.max-epsilon "
                    f"{self._dp.max_epsilon:g}"
                )
            self._spare -= 1

    def close(self) -> dict[str, int]:
        """Take back what was not taken; the whole run's steps, as counters of a session.

        Can be called again.

        Raises:
            StateError: the account cannot be written.
        """
        with self._guard:
            spare, self._spare = self._spare, 0
            counted = self._counts.change(lambda now: {**now, _STEPS: now[_STEPS] - spare})
        return {
            DP_ACCOUNT: counted[ID],
            DP_STEPS: counted[_STEPS],
            DP_EXAMPLES: counted[_EXAMPLES],
        }

    def _release(self, counted: dict[str, int], times: int) -> SampledGaussians:
        chance = min(1.0, self._expected / max(1, counted[_EXAMPLES]))
        return SampledGaussians(noise=self._dp.noise, chance=chance, times=times)


@contextmanager
def step_account(
    dp: DpConfig,
    states: StateFolder,
    origin_run_id: str,
    silo: str,
    *,
    expected: int,
    trains: bool,
) -> Iterator[StepAccount | None]:
    """The account of a session; None where gradients get no noise, or nothing is trained.

    Raises:
        StateError: it cannot be kept.
        UnsafeFolderError: its folder is another user's, or others may write into it.
        ConfigError: the accountant is not installed.
    """
    if not (dp.noise and trains):
        yield None
        return
    account = StepAccount.of(states, origin_run_id, silo, dp, expected=expected)
    try:
        yield account
    finally:
        told = account.close()
        logger.info(
            "silo %s: %d steps of DP-SGD in this run, on %d examples",
            *(silo, told[DP_STEPS], told[DP_EXAMPLES]),
        )
