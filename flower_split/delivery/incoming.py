"""A part that is arriving: appended to, hashed on the way, and put in place once it is verified."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from flower_split.delivery.manifest import Item
from flower_split.durable import sync_folder
from flower_split.errors import WireError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20


class Incoming:
    """A part in the making, as a context manager.

    What an earlier attempt left of it is hashed on entering and resumed from.

    Args:
        descriptor: The open file, which nobody else writes to.
        path: Where it lies.
        target: Where the complete part belongs.
        item: What it must become.
    """

    def __init__(self, descriptor: int, path: Path, target: Path, item: Item) -> None:
        self._descriptor = descriptor
        self._path = path
        self._target = target
        self._item = item
        self._digest = hashlib.sha256()
        self.received = 0
        """Bytes that are there."""
        self.resumed = 0
        """Bytes of them that an earlier attempt left."""
        self.placed = False
        """Whether the part is complete and in its place."""

    def __enter__(self) -> Self:
        size = os.fstat(self._descriptor).st_size
        if size > self._item.size:
            self.restart()
            return self
        while self.received < size:
            block = os.pread(self._descriptor, _BLOCK, self.received)
            if not block:
                break
            self._digest.update(block)
            self.received += len(block)
        self.resumed = self.received
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self.placed and self.received == 0:
            with suppress(FileNotFoundError):
                self._path.unlink()

    def add(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            WireError: they are more than the part has; nothing is kept.
            OSError: the disk is full; nothing is kept.
        """
        if self.received + len(data) > self._item.size:
            self.restart()
            raise WireError(
                f"the server sent more than the {self._item.size} bytes that it announced of a "
                "part of the model; nothing of it was kept"
            )
        view = memoryview(data)
        with self._drop_on_full_disk():
            while view:
                written = os.pwrite(self._descriptor, view, self.received)
                self._digest.update(view[:written])
                self.received += written
                view = view[written:]

    def complete(self) -> bool:
        """Put the part in place; False when what an earlier attempt left was broken.

        In that case nothing is left, and the part can be fetched from its beginning.

        Raises:
            WireError: the server's own bytes are not those that it announced; nothing is kept.
        """
        announced = self._item.size, self._item.digest
        if (self.received, self._digest.hexdigest()) == announced:
            with self._drop_on_full_disk():
                os.fsync(self._descriptor)
                os.replace(self._path, self._target)
                self.placed = True
                sync_folder(self._target.parent)
            return True
        resumed = self.resumed
        self.restart()
        if resumed:
            logger.warning("what was left of %s was broken; fetching it anew", self._target.name)
            return False
        raise WireError(
            "the server sent other bytes than it announced of a part of the model; nothing of it "
            "was kept. Its weights may have changed since the run began"
        )

    @contextmanager
    def _drop_on_full_disk(self) -> Iterator[None]:
        """Drop the part where the disk is full: others use the disk, and it cannot be completed."""
        try:
            yield
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                self.restart()
            raise

    def restart(self) -> None:
        """Drop everything that is there."""
        os.ftruncate(self._descriptor, 0)
        self._digest = hashlib.sha256()
        self.received = self.resumed = 0
