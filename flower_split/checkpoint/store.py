"""The store of a run's checkpoints: saves, keeps the last and the best, finds the last one."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from flower_split.checkpoint.archive import (
    TEMPORARY,
    TRASH,
    Checkpoint,
    folder_name,
    read_checkpoint,
    write_checkpoint,
)
from flower_split.checkpoint.lock import FolderLock
from flower_split.durable import move_durably, remove_folder
from flower_split.errors import DamagedStateError, StateError
from flower_split.private_files import make_private

logger = logging.getLogger(__name__)

PREVIOUS = "previous"
"""Folder for the checkpoints of an earlier run that was not resumed."""

_ROUND = re.compile(r"round-(\d{5,})(-trained)?")


class CheckpointStore:
    """The checkpoints in one folder, as a context manager that keeps other runs out of it.

    Args:
        folder: Made when it does not exist.
        keep: Last checkpoints that are kept; the best one is kept besides.

    Raises:
        StateError: on entering: the folder cannot be written, or another run uses it.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(FolderLock(self.folder))
            for path in list(self.folder.iterdir()):
                if path.name.startswith((TEMPORARY, TRASH)):
                    shutil.rmtree(path, ignore_errors=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def save(self, checkpoint: Checkpoint) -> bool:
        """Write `checkpoint` and delete what need not be kept any more.

        Returns:
            Whether it was written. If not, a warning says why; earlier ones are as they were.
        """
        path = self.folder / folder_name(*checkpoint.place)
        try:
            write_checkpoint(checkpoint, self.folder)
        except OSError as error:
            logger.warning(
                "checkpoint %s could not be written: %s; the run goes on%s",
                path,
                error.strerror or error,
                self._what_is_there(besides=checkpoint.place),
            )
            return False
        self._prune(checkpoint)
        return True

    def _what_is_there(self, *, besides: tuple[int, bool]) -> str:
        """What a run could be resumed from after all; empty where that cannot be read."""
        try:
            held = set(_places(self.folder)) - {besides}
        except StateError:
            return ""
        if held:
            return ", and the checkpoints before it are intact"
        return ", and there is no earlier one to resume it from"

    def load_last(self, *, fallback: bool = False) -> Checkpoint | None:
        """The last checkpoint, or None when there is none at all; see `find_checkpoint`."""
        return find_checkpoint(self.folder, fallback=fallback)

    def set_aside(self) -> None:
        """Move the checkpoints of an earlier run into the folder `previous`, and say so.

        What was there before is deleted.
        """
        rounds = [folder_name(*place) for place in sorted(_places(self.folder))]
        # The last one at the end: should this be cut off, the run can still be resumed.
        found = [*self._others(rounds), *(self.folder / name for name in rounds)]
        if not found:
            return
        aside = self.folder / PREVIOUS
        try:
            if aside.exists():
                remove_folder(aside, self.folder / f"{TRASH}{PREVIOUS}")
            make_private(aside, remedy="choose another output-dir")
            for path in found:
                move_durably(path, aside / path.name)
        except OSError as error:
            raise StateError(
                f"the checkpoints of an earlier run in {self.folder} cannot be moved to {aside}: "
                f"{error.strerror}"
            ) from error
        logger.warning(
            "%s had %d checkpoints of an earlier run, which are in %s now and are deleted when "
            "the next run starts anew; to resume from them, move them back and set resume to true",
            self.folder,
            len(rounds),
            aside,
        )

    def _others(self, rounds: list[str]) -> list[Path]:
        """Folders of a run's that are neither checkpoints of its own nor an earlier run's."""
        known = {*rounds, PREVIOUS}
        return [p for p in self.folder.iterdir() if p.is_dir() and p.name not in known]

    def _prune(self, last: Checkpoint) -> None:
        best = (last.best_round, True)
        others = [place for place in _places(self.folder) if place not in (last.place, best)]
        # A resumed run may find rounds after its own, which were damaged: those go first, and
        # with them what was only trained where the same round is complete.
        stale = [p for p in others if p > last.place or p == (last.server_round, False)]
        earlier = sorted(place for place in others if place not in stale)
        for place in [*stale, *earlier[: max(0, len(earlier) - self._keep + 1)]]:
            name = folder_name(*place)
            try:
                remove_folder(self.folder / name, self.folder / f"{TRASH}{name}")
            except OSError as error:
                logger.warning("%s could not be deleted: %s", self.folder / name, error.strerror)


def find_checkpoint(
    folder: Path,
    *,
    server_round: int | None = None,
    best: bool = False,
    fallback: bool = False,
) -> Checkpoint | None:
    """A checkpoint of a store's folder, which may be in use or read-only.

    Args:
        folder: The store's folder.
        server_round: Which one; None takes the last one.
        best: Take the one that was kept as the best.
        fallback: Whether one before the last may take its place where that is damaged, with a
            warning for every one that is.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        DamagedStateError: the last one is damaged, and none before it may take its place.
        StateError: there are some, and none is intact, or not the one that was asked for.
    """
    if server_round is not None:
        return _read_round(folder, server_round)
    last = _last(folder, fallback=fallback)
    if last is None or not best:
        return last
    if last.best_round is None:
        raise StateError(
            f"no checkpoint in {folder} was kept as the best: set checkpoint.keep-best for the "
            "run, or choose a round"
        )
    return _read_round(folder, last.best_round)


def _read_round(folder: Path, server_round: int) -> Checkpoint:
    places = sorted(place for place in _places(folder) if place[0] == server_round)
    if not places:
        kept = ", ".join(str(number) for number, _ in sorted(_places(folder))) or "none"
        raise StateError(f"{folder} has no checkpoint of round {server_round}; it has: {kept}")
    return read_checkpoint(folder / folder_name(*places[-1]))


def _last(folder: Path, *, fallback: bool) -> Checkpoint | None:
    places = sorted(_places(folder), reverse=True)
    for place in places:
        try:
            return read_checkpoint(folder / folder_name(*place))
        except DamagedStateError as error:
            if not fallback and len(places) > 1:
                raise DamagedStateError(
                    f"{error}. Find out what damaged it. The one before it is {_before(places)}: "
                    "name it, or set checkpoint.fallback to true for a run that is resumed"
                ) from error
            logger.warning("%s; the checkpoint before it is used", error)
    if places:
        raise StateError(
            f"none of the {len(places)} checkpoints in {folder} is intact: start the run anew "
            "without resume, or put back a copy of one"
        )
    return None


def _before(places: list[tuple[int, bool]]) -> str:
    number, complete = places[1]
    return f"of round {number}{'' if complete else ', which is trained and not yet evaluated'}"


def _places(folder: Path) -> Iterator[tuple[int, bool]]:
    """Round, and whether it is complete, of every checkpoint in the folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StateError(f"{folder} cannot be read: {why}") from error
    for name in names:
        found = _ROUND.fullmatch(name)
        if found:
            yield int(found[1]), found[2] is None
