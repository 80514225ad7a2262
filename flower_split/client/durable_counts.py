"""Durable counts: numbers of one silo in one run, which outlive processes and resumed runs."""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flower_split.client.state.folder import StateFolder, file_name
from flower_split.errors import StateError
from flower_split.private_files import (
    make_folder,
    make_private,
    open_lasting,
    read_whole,
    write_whole,
)
from flower_split.reporting.counters import MOST
from flower_split.text_tables import read_json

LOCK = "lock"
ID = "id"
"""Under which the file has a number of its own, drawn when it was begun."""

Counts = dict[str, int]


class DurableCounts:
    """A file of counts, each from 0 to `MOST`, which is made when it is missing.

    Args:
        folder: Its own, below that of the silo's states.
        root: The folder that the silo's operator named.
        file: The file's name.
        names: Of the counts.
        what: It is, for errors.

    Raises:
        StateError: it cannot be kept, or the file is damaged.
        UnsafeFolderError: it is another user's, or others may write into it.
    """

    def __init__(
        self, folder: Path, *, root: Path, file: str, names: Sequence[str], what: str
    ) -> None:
        self._folder, self._path = folder, folder / file
        self._names = {ID, *names}
        self._what = what
        with self._mapped():
            make_folder(root)
            make_private(folder, below=root, remedy="name another state-dir in the node config")
        self.change(lambda counted: counted)

    @classmethod
    def of(
        cls,
        states: StateFolder,
        place: tuple[str, str, str],
        *,
        file: str,
        names: Sequence[str],
        what: str,
    ) -> "DurableCounts":
        """The file of a silo, with those of runs that nobody has resumed for too long removed.

        Args:
            states: The node's.
            place: The folder of all such files, the origin run's id, and the silo's name.
            file: The file's name.
            names: Of the counts.
            what: It is, for errors.
        """
        kind, origin_run_id, silo = place
        below = states.root / kind
        own = below / file_name(origin_run_id) / file_name(silo)
        _sweep(below, own, older_than=time.time() - states.days * 24 * 3600)
        return cls(own, root=states.root, file=file, names=names, what=what)

    def change(self, change: Callable[[Counts], Counts]) -> Counts:
        """The counts after `change`, which are on the disk when this returns.

        Raises:
            StateError: they cannot be written, or the file is damaged.
        """
        with self._mapped():
            lock = open_lasting(self._folder / LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                before = self._read()
                counted = change(before)
                if counted != before or not self._path.exists():
                    write_whole(self._path, json.dumps(counted).encode())
                return counted
            finally:
                os.close(lock)

    def _read(self) -> Counts:
        try:
            told = read_json(read_whole(self._path))
        except FileNotFoundError:
            return {**dict.fromkeys(sorted(self._names), 0), ID: secrets.randbelow(MOST)}
        except ValueError:
            told = None
        whole = isinstance(told, dict) and told.keys() == self._names
        if not whole or not all(type(n) is int and 0 <= n <= MOST for n in told.values()):
            raise StateError(
                f"{self._path} is damaged, and with it the count of what left this silo in the "
                "run: no guarantee can be told of it. Start a new run"
            )
        return dict(told)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"{self._what} in {self._folder} cannot be kept: {error}. Make room, or name "
                "another folder with state-dir in the node config"
            ) from error


def _sweep(below: Path, own: Path, *, older_than: float) -> None:
    """Remove what nobody has written in for too long."""
    for folder in below.glob("*/*"):
        try:
            old = folder != own and folder.lstat().st_mtime < older_than
            if old and not folder.is_symlink() and not folder.parent.is_symlink():
                shutil.rmtree(folder)
                folder.parent.rmdir()
        except OSError:
            continue
