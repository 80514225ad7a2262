"""`EventLog`: appends what happens in a run to its `events.jsonl`, whole lines with one write each.

One process writes the file, which `flock` holds for it. What a killed one began to write is cut off
when the run goes on. A disk that is full ends no run: the events that do not fit are missing, and a
warning says so once.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flower_split.errors import StateError
from flower_split.private_files import make_folder, open_lasting
from flower_split.reporting.events.kinds import EVENTS, header, line_of
from flower_split.reporting.events.reading import last_number

logger = logging.getLogger(__name__)

PREVIOUS = "events.previous.jsonl"
"""Name of the events of an earlier run in the same folder."""
CLOSED = -1


class EventLog:
    """A context manager that appends to the events in `folder`.

    Args:
        folder: The run's output folder, made if missing.
        resume: Whether the events of a run that was there are continued. Otherwise, and where they
            cannot be read, they become `events.previous.jsonl`.

    Raises:
        StateError: on entering: another run writes there, or the file cannot be written.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self.path = folder / EVENTS
        self._resume = resume
        self._handle = CLOSED
        self._number = 0
        self._warned = False
        # An exit handler may tell its last word in the very thread that is telling.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        try:
            make_folder(self.path.parent)
            self._handle = self._locked()
            self._number = self._go_on()
        except OSError as error:
            self.close()
            raise StateError(
                f"events cannot be written to {self.path}: {error.strerror}. Make it writable, or "
                "choose another output-dir"
            ) from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Force what was told to the disk, and let go of the file. Can be called twice."""
        with self._lock:
            handle, self._handle = self._handle, CLOSED
            if handle == CLOSED:
                return
            try:
                os.fsync(handle)
            except OSError as error:
                logger.warning("%s is not on the disk: %s", self.path, error.strerror)
            finally:
                os.close(handle)

    def tell(self, kind: str, **fields: Any) -> None:
        """Append an event; nothing once the log is closed.

        Raises:
            ValueError: there are no such events, see `KINDS`.
        """
        with self._lock:
            if self._handle == CLOSED:
                return
            line = line_of(kind, fields, n=self._number, time=time.time())
            self._number += 1
            try:
                self._append(line)
            except OSError as error:
                if not self._warned:
                    logger.warning(
                        "what happens in this run is missing in %s: %s", self.path, error.strerror
                    )
                self._warned = True

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._handle).st_size
        if os.write(self._handle, line) != len(line):  # the disk is full: half a line goes again
            os.ftruncate(self._handle, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _locked(self) -> int:
        handle = open_lasting(self.path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.fcntl(handle, fcntl.F_SETFL, os.O_APPEND)
        except BlockingIOError:
            os.close(handle)
            raise StateError(
                f"another run writes its events to {self.path}: wait for its end, or choose "
                "another output-dir"
            ) from None
        except OSError:
            os.close(handle)
            raise
        return handle

    def _go_on(self) -> int:
        """The number of the next event, in a file that ends with a whole line."""
        if os.fstat(self._handle).st_size:
            last = last_number(self._handle) if self._resume else None
            if last is not None:
                return last + 1
            if self._resume:
                logger.warning(
                    "%s cannot be continued, for another version wrote it: it is %s now",
                    self.path,
                    PREVIOUS,
                )
            os.replace(self.path, self.path.with_name(PREVIOUS))
            os.close(self._handle)
            self._handle = self._locked()
        self._append(header())
        return 0
