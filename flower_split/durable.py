"""Durable changes of folders: what returns from here is on the disk, and not in memory only."""

import errno
import os
import shutil
from pathlib import Path


def sync_file(path: Path) -> None:
    """Force to the disk what another library has written to a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to the disk, where its file system can do that for a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def move_durably(source: Path, target: Path) -> None:
    """Rename within one file system; afterwards there is `source` or `target`, never half."""
    os.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove_folder(folder: Path, trash: Path) -> None:
    """Delete `folder` under the name `trash`, so that a half-deleted one is not taken for it."""
    os.rename(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)
