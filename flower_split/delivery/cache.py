"""The cache: verified parts on a silo's disk by content, shared by runs, processes and silos.

A part is complete under its digest's name, or in the making under the same name with `.part`. Who
fills a `.part` holds a lock on it, which ends with its process, however that ends. What a process
uses of the cache it has hashed itself, so that neither a bad disk nor another program can change a
model unnoticed.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flower_split.delivery.incoming import Incoming
from flower_split.delivery.manifest import Item
from flower_split.errors import DeliveryError, UnsafeFolderError
from flower_split.private_files import make_folder, make_private, open_lasting, opened

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds without progress after which another process's download is no longer waited for."""
_POLL = 0.1
_SPARE_BYTES = 64 << 20

_Stamp = tuple[int, int, int, int]


class PartCache:
    """The folder of parts.

    Args:
        folder: Made when it is missing, for this user only; may be a link, and nothing in it is.

    Raises:
        DeliveryError: the folder cannot be made or written to, or others may write into it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.folder = make_folder(folder)
            self.parts = self.folder / "parts"
            make_private(self.parts, below=self.folder, remedy=REMEDY)
        except UnsafeFolderError as exc:
            raise DeliveryError(f"the silo's part of the model cannot be kept: {exc}") from exc
        except OSError as exc:
            raise _unusable(folder, exc) from exc
        if not os.access(self.parts, os.W_OK | os.X_OK):
            raise DeliveryError(f"the cache folder {self.parts} is not writable; {REMEDY}")

    def path(self, digest: str) -> Path:
        """Where the complete part is, or will be."""
        return self.parts / digest

    def holds(self, item: Item) -> bool:
        """Whether the part is there, complete and unchanged; a broken one is removed."""
        if not self.verified(item.digest):
            return False
        with suppress(FileNotFoundError):
            return self.path(item.digest).stat().st_size == item.size
        return False

    def verified(self, digest: str) -> bool:
        """Whether the part is there and its bytes have that digest; a broken one is removed."""
        path = self.path(digest)
        try:
            with opened(path) as file:
                stamp = _stamp(file.fileno())
                if _verified.get(path) == stamp:
                    return True
                found = hashlib.file_digest(file, "sha256").hexdigest()
                unchanged = stamp == _stamp(file.fileno())
        except FileNotFoundError:
            return False
        except OSError as exc:
            if not path.is_symlink():
                raise _unusable(path, exc) from exc
            found, unchanged = "", False
        if found == digest and unchanged:
            _verified[path] = stamp
            return True
        logger.warning("the cached file %s is broken and is fetched again", path)
        with suppress(FileNotFoundError):
            path.unlink()
        return False

    def read(self, digest: str, most: int) -> bytes | None:
        """The bytes of a small part; None where it is missing or broken."""
        if not self.verified(digest):
            return None
        try:
            with opened(self.path(digest)) as file:
                content = file.read(most)
        except OSError as exc:
            raise _unusable(self.path(digest), exc) from exc
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def check_room(self, num_bytes: int) -> None:
        """Raise `DeliveryError` unless the disk has room for `num_bytes` more."""
        free = shutil.disk_usage(self.parts).free
        if free < num_bytes + _SPARE_BYTES:
            raise DeliveryError(
                f"the silo's part of the model needs {num_bytes >> 20} MiB more in "
                f"{self.parts}, where {free >> 20} MiB are free; make room, or {REMEDY}"
            )

    @contextmanager
    def incoming(self, item: Item) -> Iterator[Incoming | None]:
        """The part in the making, for this caller alone; None when it is complete by now.

        Waits for another process that is at it, as long as that one makes progress. What was
        received is kept when the block fails, for the next attempt to resume from.

        Raises:
            DeliveryError: the disk is full, which keeps nothing of the part, or not writable.
        """
        path = self.path(item.digest)
        try:
            with self._locked(path.with_suffix(".part"), item) as (descriptor, where):
                if descriptor is None:
                    yield None
                    return
                with Incoming(descriptor, where, path, item) as part:
                    yield part
                    if part.placed:
                        _verified[path] = _stamp(descriptor)
        except OSError as exc:
            raise _unusable(path, exc) from exc

    @contextmanager
    def _locked(self, path: Path, item: Item) -> Iterator[tuple[int | None, Path]]:
        """Descriptor of the `.part` file, locked, and its path; no descriptor once it is done."""
        seen, since = -1, time.monotonic()
        while True:
            descriptor = open_lasting(path)
            try:
                if _lock(descriptor) and _is_at(descriptor, path):
                    # Only now: who held the lock may have completed the part.
                    done = self.holds(item)
                    if done:
                        path.unlink()
                    yield (None if done else descriptor), path
                    return
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if size != seen:
                seen, since = size, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                break
            time.sleep(_POLL)
        logger.warning("another process holds %s and does not go on; not waiting for it", path)
        descriptor, own = tempfile.mkstemp(suffix=".own", prefix=f"{path.name}.", dir=self.parts)
        try:
            yield descriptor, Path(own)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(own)


REMEDY = "name another folder with cache-dir in the node config"
"""What whoever cannot keep a model here may do."""

# What this process has hashed, by its state then: a change shows in the times of the file.
_verified: dict[Path, _Stamp] = {}


def _stamp(descriptor: int) -> _Stamp:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`; it was renamed when it was complete."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _unusable(path: Path, exc: OSError) -> DeliveryError:
    return DeliveryError(
        f"the silo's part of the model cannot be kept at {exc.filename or path}: "
        f"{exc.strerror or exc}; "
        f"make room or repair it, or {REMEDY}"
    )
