"""The lock on a folder: one run at a time, and free again when its process dies."""

import fcntl
import os
from pathlib import Path
from typing import Self

from flower_split.errors import StateError
from flower_split.private_files import make_folder, make_private, open_lasting

NAME = ".lock"


class FolderLock:
    """Context manager that holds `flock` on a file in `folder`, which is made if missing.

    The kernel frees the lock with the process, however that ends.

    Raises:
        StateError: on entering: another run holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle = -1

    def __enter__(self) -> Self:
        try:
            make_folder(self._folder.parent)
            make_private(self._folder, remedy="choose another output-dir")
            handle = open_lasting(self._folder / NAME)
        except OSError as error:
            raise StateError(
                f"checkpoints cannot be written to {self._folder}: {error.strerror}. Make the "
                "folder writable, choose another output-dir, or set checkpoint.keep to 0"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise StateError(
                f"another run writes checkpoints to {self._folder}: wait for its end, or choose "
                "another output-dir"
            ) from None
        except OSError as error:
            os.close(handle)
            raise StateError(
                f"{self._folder} cannot be locked: {error.strerror}. Choose an output-dir on a "
                "file system with locks, or set checkpoint.keep to 0"
            ) from error
        self._handle = handle
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
