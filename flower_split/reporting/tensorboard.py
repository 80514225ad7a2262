"""Scalars of a run for TensorBoard: every metric and counter, by silo and round, as they come.

The folder holds event files in TensorBoard's own format, written by torch: a TensorBoard run `run`
for what concerns all silos, and one for each silo, so that one chart has a curve a silo. They need
the package `tensorboard`.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flower_split.errors import ConfigError
from flower_split.private_files import make_folder
from flower_split.reporting.result import RoundResult

logger = logging.getLogger(__name__)

ALL = "run"
"""The TensorBoard run of what concerns all silos."""
_LONGEST_FOLDER = 64


class ScalarWriter:
    """A context manager that writes rounds to `folder`, each at once.

    The scalars of a run that begins anew come into an empty folder: what an earlier one left is
    set aside. Those of a run that resumes take the place of the rounds that are done again.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make = _writer_class()
        self._writers: dict[str, Any] = {}
        self._first: int | None = None

    def write(self, one: RoundResult) -> None:
        """Write a round; a disk that is full ends no run, a warning says so."""
        try:
            if self._first is None:
                self._first = one.server_round
                if self._first == 0:
                    set_aside(self._folder)
            for run, tag, value in scalars(one):
                self._writer(run).add_scalar(tag, value, one.server_round)
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            logger.warning(
                "round %d is not written for TensorBoard: %s", one.server_round, error.strerror
            )

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            own = make_folder(self._folder / run)
            self._writers[run] = self._make(str(own), purge_step=self._first)
        return self._writers[run]


def scalars(one: RoundResult) -> Iterator[tuple[str, str, float]]:
    """Every number of a round: the TensorBoard run that it belongs to, its tag and its value."""
    yield ALL, "round/seconds", one.seconds
    yield ALL, "round/silos-that-failed", len(one.failures)
    for name, value in _numbers(one.aggregated):
        yield ALL, f"aggregated/{name}", value
    for tag, by_silo in (
        ("train", one.train),
        ("evaluate", one.evaluate),
        ("train-counters", one.train_counters),
        ("evaluate-counters", one.evaluate_counters),
    ):
        for silo, told in by_silo.items():
            for name, value in _numbers(told):
                yield folder_name(silo), f"{tag}/{name}", value


def folder_name(silo: str) -> str:
    """A folder's name for a silo, whatever it calls itself; different names stay different."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", silo)[:_LONGEST_FOLDER]
    if plain != silo:
        plain += f"-{hashlib.sha256(silo.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return f"silo-{plain}"


def set_aside(folder: Path) -> None:
    """Rename `folder`, where there is one, to the first name `FOLDER.1`, `FOLDER.2`, … in reach."""
    if folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)


def _numbers(told: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in told.items():
        if isinstance(value, (int, float)):
            yield name, float(value)


def _writer_class() -> Callable[..., Any]:
    # Imported late: it takes long, and only runs that write scalars have the package.
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard is true, and the package tensorboard is not installed where the ServerApp "
            "runs: pip install 'flower-split[tensorboard]', or set tensorboard to false"
        ) from error
    return SummaryWriter
