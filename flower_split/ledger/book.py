"""`Ledger`: appends entries to the files of a folder, one chain over all of them.

The files are `ledger-<number of the first entry>.jsonl`; `head.json` tells where the chain ended
when it was last committed, and where it begins since old files were removed. Several processes may
append to one ledger: each takes the folder's lock for the time of a write.
"""

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from flower_split.durable import sync_folder
from flower_split.errors import LedgerError
from flower_split.ledger.entries import LONGEST, NOTHING, VERSION, hash_of, line_of, read_line
from flower_split.private_files import (
    check_private,
    make_folder,
    opened,
    read_whole,
    write_whole,
)

HEAD, LOCK = "head.json", "lock"
FILES = "ledger-*.jsonl"
NAME = re.compile(r"ledger-[0-9]{12}\.jsonl")
_TAIL_BYTES = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where the chain ended at the last commit, and where it begins."""

    entries: int
    """Number of the next entry."""
    hash: str
    """Of the last one."""
    first: int
    """Number of the first entry that was not removed."""
    before: str
    """Hash of the one before that."""
    version: int = VERSION


class Ledger:
    """The ledger in `folder`, to append to.

    Args:
        folder: Its own; made when it is missing, for this user alone.
        max_file_bytes: Size at which another file is begun.
        max_files: Files that are kept; the oldest one goes for a new one.

    Raises:
        LedgerError: the folder cannot be made or written.
        UnsafeFolderError: it is another user's, or others may write into it.
    """

    def __init__(
        self, folder: Path, *, max_file_bytes: int = 16 << 20, max_files: int = 64
    ) -> None:
        self.folder = folder
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._guard = threading.Lock()
        self._file = Path()
        self._size = -1
        self._next, self._hash = 0, NOTHING
        with _mapped(folder):
            self.folder = folder = make_folder(folder)
            check_private(folder, remedy="name another ledger-dir in the node config")
            self._lock = os.open(
                folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write `entries` in their order; they are in the file when this returns.

        In the system's memory, that is, which outlives this process; `commit` forces them to disk.

        Raises:
            LedgerError: they cannot be written; nothing that they account for may leave.
        """
        if not entries:
            return
        with self._exclusive():
            self._catch_up()
            lines, n, previous = list[bytes](), self._next, self._hash
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            for fields in entries:
                line = line_of(fields, n=n, previous=previous, time=time)
                lines.append(line)
                n, previous = n + 1, hash_of(line)
            if self._size >= self._max_file_bytes or not self._file.name:
                self._begin_file()
            data = b"\n".join(lines) + b"\n"
            _write(self._file, data)
            self._next, self._hash, self._size = n, previous, self._size + len(data)

    def commit(self) -> str:
        """Force everything to the disk, and note where the chain ends; the hash of its end.

        Raises:
            LedgerError: it cannot be written.
        """
        with self._exclusive():
            self._catch_up()
            if self._file.name:
                _sync(self._file)
            self._write_head()
            return self._hash

    def close(self) -> None:
        """Let go of the folder, without a commit. Can be called twice."""
        with self._guard:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._guard, _mapped(self.folder):
            if self._lock < 0:
                raise LedgerError(f"the ledger in {self.folder} is closed")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Find the chain's end, where another process has moved it."""
        files = ledger_files(self.folder)
        if not files:
            head = read_head(self.folder)
            if head is not None and head.entries > 0:
                raise LedgerError(
                    f"the ledger in {self.folder} ended with entry {head.entries - 1}, and its "
                    "files are gone: move what is left elsewhere to begin another"
                )
            return
        size = files[-1].stat().st_size
        if files[-1] == self._file and size == self._size:
            return
        self._file, self._size = files[-1], size
        self._next, self._hash = self._end()

    def _end(self) -> tuple[int, str]:
        """Number of the next entry and hash of the last; what a killed process began is cut off."""
        with opened(self._file) as file:
            file.seek(max(0, self._size - _TAIL_BYTES))
            tail = file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(tail) - len(whole) > LONGEST:
            raise LedgerError(f"{self._file} ends with a line that is no entry's")
        if len(whole) < len(tail):  # the end of a line never came
            self._size -= len(tail) - len(whole)
            os.truncate(self._file, self._size)
        lines = whole.splitlines()
        if not lines:
            first = int(self._file.stem.rpartition("-")[2])
            older = [file for file in ledger_files(self.folder) if file != self._file]
            if not older:
                head = read_head(self.folder)
                return (0, NOTHING) if head is None else (head.first, head.before)
            lines = read_whole(older[-1]).splitlines()
            if not lines:
                raise LedgerError(f"{older[-1]} is empty: its entries were removed")
            return first, hash_of(lines[-1])
        return read_line(lines[-1]).n + 1, hash_of(lines[-1])

    def _begin_file(self) -> None:
        if self._file.name:
            _sync(self._file)
        self._file, self._size = self.folder / f"ledger-{self._next:012d}.jsonl", 0
        os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        sync_folder(self.folder)
        files = ledger_files(self.folder)
        for old, kept in pairwise(files):
            if len(ledger_files(self.folder)) <= self._max_files:
                break
            first = self._hash if kept == self._file else _first_previous(kept)
            self._write_head(first=int(kept.stem.rpartition("-")[2]), before=first)
            old.unlink()

    def _write_head(self, *, first: int | None = None, before: str | None = None) -> None:
        was = read_head(self.folder)
        head = Head(
            entries=self._next,
            hash=self._hash,
            first=first if first is not None else 0 if was is None else was.first,
            before=before if before is not None else NOTHING if was is None else was.before,
        )
        data = json.dumps(asdict(head), sort_keys=True).encode()
        write_whole(self.folder / HEAD, data, temporary=f"{HEAD}.part")


def ledger_files(folder: Path) -> list[Path]:
    """The files of the ledger in `folder`, in the order of their entries."""
    return sorted(path for path in folder.glob(FILES) if NAME.fullmatch(path.name))


def read_head(folder: Path) -> Head | None:
    """Where the chain ended at the last commit; None before the first.

    Raises:
        LedgerError: the head is damaged.
    """
    path = folder / HEAD
    try:
        told = json.loads(read_whole(path))
        head = Head(**told)
        counts, hashes = (head.entries, head.first), (head.hash, head.before)
        if not all(type(count) is int and count >= 0 for count in counts) or not all(
            isinstance(one, str) and len(one) == len(NOTHING) for one in hashes
        ):
            raise ValueError("a value is not of its kind")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"{path} is damaged: {error}") from error
    if head.version != VERSION:
        raise LedgerError(
            f"{path} is of version {head.version}, and this flower_split reads {VERSION}"
        )
    return head


def _first_previous(file: Path) -> str:
    with opened(file) as held:
        return read_line(held.readline(LONGEST + 2).rstrip(b"\n")).previous


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        written = os.write(handle, data)
        if written != len(data):  # the disk is full: what is half there is taken back
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise LedgerError(f"{path} takes no more: is its disk full?")
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(f"the ledger in {folder} cannot be written: {error}") from error
