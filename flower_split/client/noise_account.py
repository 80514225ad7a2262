"""The account of a silo's noise: how many token rows have left it in a run, by hop.

It outlives processes, sessions that failed and runs that were resumed: rows are in its file before
they leave. The file counts ahead, in blocks, and a session that ends takes back what it did not
use; where one never ended, the rest of its block counts as if it had left.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flower_split.client.durable_counts import ID, DurableCounts
from flower_split.client.state.folder import StateFolder
from flower_split.config.wire import UPWARD_HOPS, WireConfig
from flower_split.reporting.counters import NOISE_ACCOUNT, noisy_rows

logger = logging.getLogger(__name__)

FOLDER, ROWS = "noise", "rows.json"
BLOCK = 1 << 15
"""Rows by which the file is ahead of what has left."""
_WHAT = "the account of the noise"


class NoiseAccount:
    """The account of one silo in one run and those that resume it.

    Args:
        counts: Its file.
    """

    def __init__(self, counts: DurableCounts) -> None:
        self._counts = counts
        self._guard = threading.Lock()
        self._spare = dict.fromkeys(UPWARD_HOPS, 0)

    @classmethod
    def of(cls, states: StateFolder, origin_run_id: str, silo: str) -> "NoiseAccount":
        """That of a silo, with those of runs that nobody has resumed for too long removed.

        Raises:
            StateError: it cannot be kept, or its file is damaged.
            UnsafeFolderError: it is another user's, or others may write into it.
        """
        counts = DurableCounts.of(
            states, (FOLDER, origin_run_id, silo), file=ROWS, names=UPWARD_HOPS, what=_WHAT
        )
        return cls(counts)

    def leaving(self, hop: str, rows: int) -> None:
        """Count rows of `hop` that are about to leave.

        Raises:
            StateError: they cannot be counted, so they must not leave.
        """
        if hop not in self._spare:
            return
        with self._guard:
            if self._spare[hop] < rows:
                taken = rows - self._spare[hop] + BLOCK
                self._change({hop: taken})
                self._spare[hop] += taken
            self._spare[hop] -= rows

    def close(self) -> dict[str, int]:
        """Take back what did not leave; what has left in the whole run, as counters of a session.

        Can be called again.

        Raises:
            StateError: the account cannot be written.
        """
        with self._guard:
            counted = self._change({hop: -spare for hop, spare in self._spare.items()})
            self._spare = dict.fromkeys(UPWARD_HOPS, 0)
        rows = {noisy_rows(hop): counted[hop] for hop in UPWARD_HOPS}
        return {NOISE_ACCOUNT: counted[ID], **rows}

    def _change(self, by: Mapping[str, int]) -> dict[str, int]:
        return self._counts.change(
            lambda counted: {name: n + by.get(name, 0) for name, n in counted.items()}
        )


@contextmanager
def noise_account(
    wire: WireConfig, states: StateFolder, origin_run_id: str, silo: str
) -> Iterator[NoiseAccount | None]:
    """The account of a session; None where nothing that leaves gets noise.

    Raises:
        StateError: it cannot be kept.
        UnsafeFolderError: its folder is another user's, or others may write into it.
    """
    if not wire.hides:
        yield None
        return
    account = NoiseAccount.of(states, origin_run_id, silo)
    try:
        yield account
    finally:
        told = account.close()
        logger.info(
            "silo %s: %s have left with noise in this run",
            silo,
            " and ".join(f"{told[noisy_rows(hop)]} rows of {hop}" for hop in UPWARD_HOPS),
        )
