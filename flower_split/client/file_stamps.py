"""Stamps of files: by which a process that outlives its first reading sees that they changed."""

import os
from pathlib import Path

Stamps = tuple[tuple[str, int, int, int, int], ...]


def file_stamps(*names: str) -> Stamps:
    """Path, inode, size and times of every file in what `names` lead to; none where they do not.

    Args:
        names: Files, folders, and what is neither: the hub's names, references, empty ones.
    """
    found: list[tuple[str, int, int, int, int]] = []
    for name in names:
        if not name or "\0" in name:
            continue
        path = Path(os.path.expanduser(name))
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            times = status.st_mtime_ns, status.st_ctime_ns
            found.append((str(file), status.st_ino, status.st_size, *times))
    return tuple(found)
