"""The account of a silo's noise: how many token rows have left it in a run, by hop.

It outlives processes, sessions that failed and runs that were resumed: rows are in its file before
they leave. The file counts ahead, in blocks, and a session that ends takes back what it did not
use; where one never ended, the rest of its block counts as if it had left.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flower_split.client.state.folder import StateFolder, file_name
from flower_split.config.wire import UPWARD_HOPS, WireConfig
from flower_split.errors import StateError
from flower_split.private_files import (
    make_folder,
    make_private,
    open_lasting,
    read_whole,
    write_whole,
)
from flower_split.reporting.counters import MOST, NOISE_ACCOUNT, noisy_rows
from flower_split.text_tables import read_json

logger = logging.getLogger(__name__)

FOLDER, ROWS, LOCK = "noise", "rows.json", "lock"
BLOCK = 1 << 15
"""Rows by which the file is ahead of what has left."""
_ID = "id"


class NoiseAccount:
    """The account of one silo in one run and those that resume it.

    Args:
        folder: Its own, below that of the silo's states; made when it is missing.
        root: The folder that the silo's operator named.

    Raises:
        StateError: it cannot be kept, or its file is damaged.
        UnsafeFolderError: it is another user's, or others may write into it.
    """

    def __init__(self, folder: Path, *, root: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._spare = dict.fromkeys(UPWARD_HOPS, 0)
        with _mapped(folder):
            make_folder(root)
            make_private(folder, below=root, remedy="name another state-dir in the node config")
        self._change({})

    @classmethod
    def of(cls, states: StateFolder, origin_run_id: str, silo: str) -> "NoiseAccount":
        """That of a silo, with those of runs that nobody has resumed for too long removed."""
        below = states.root / FOLDER
        own = below / file_name(origin_run_id) / file_name(silo)
        _sweep(below, own, older_than=time.time() - states.days * 24 * 3600)
        return cls(own, root=states.root)

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
        return {NOISE_ACCOUNT: counted[_ID], **rows}

    def _change(self, by: Mapping[str, int]) -> dict[str, int]:
        path = self._folder / ROWS
        with _mapped(self._folder):
            lock = open_lasting(self._folder / LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                counted = _read(path)
                if any(by.values()) or not path.exists():
                    counted = {name: n + by.get(name, 0) for name, n in counted.items()}
                    write_whole(path, json.dumps(counted).encode())
                return counted
            finally:
                os.close(lock)


def _read(path: Path) -> dict[str, int]:
    try:
        told = read_json(read_whole(path))
    except FileNotFoundError:
        return {_ID: secrets.randbelow(MOST), **dict.fromkeys(UPWARD_HOPS, 0)}
    except ValueError:
        told = None
    whole = isinstance(told, dict) and told.keys() == {_ID, *UPWARD_HOPS}
    if not whole or not all(type(n) is int and 0 <= n <= MOST for n in told.values()):
        raise StateError(
            f"{path} is damaged, and with it the count of what left this silo in the run: no "
            "guarantee can be told of it. Start a new run"
        )
    return dict(told)


def _sweep(below: Path, own: Path, *, older_than: float) -> None:
    """Remove accounts in which nobody has written for too long."""
    for folder in below.glob("*/*"):
        try:
            old = folder != own and folder.lstat().st_mtime < older_than
            if old and not folder.is_symlink() and not folder.parent.is_symlink():
                shutil.rmtree(folder)
                folder.parent.rmdir()
        except OSError:
            continue


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"the account of the noise in {folder} cannot be kept: {error}. Make room, or name "
            "another folder with state-dir in the node config"
        ) from error


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
