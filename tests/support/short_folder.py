"""A folder for temporary files of one test's own, by which everything that it started is found.

Its path is short, because Ray's sockets lie below it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def short_folder() -> Iterator[Path]:
    """The folder, for `TMPDIR`; removed at the end."""
    folder = Path("/tmp") / f"fs{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Living processes whose `TMPDIR` is `folder`, or that have a file in it open."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Ray's workers write their title over their environment, and have log files open.
            if process.environ().get("TMPDIR") == str(folder) or any(
                Path(file.path).is_relative_to(folder) for file in process.open_files()
            ):
                found.append(process)
    return found
