"""Reading events: whole lines of a file that grows, of a run that is killed, resumed or begun anew.

What cannot be read costs itself alone: half a line waits for its other half, and a line that is no
event is passed over.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from flower_split.errors import DataError
from flower_split.private_files import opened
from flower_split.reporting.events.kinds import FORMAT, LONGEST, VERSION
from flower_split.text_tables import check_characters

Number = TypeVar("Number", int, float)

CHUNK = 4 << 20
"""Bytes that are read at once."""
LARGEST = 1e300
"""Magnitude of a number: sums and means of such numbers are finite."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event as it was read."""

    n: int
    """Its number, which grows from event to event."""
    time: float
    """When it happened: seconds since 1970, UTC."""
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What it tells, see `KINDS`."""


class EventTail:
    """Reads the events of a file as they come; the file need not be there yet.

    Args:
        path: The `events.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun_anew = False
        """Whether the last `read` found another file than the one before: what was read is void."""
        self._file: tuple[int, int] | None = None
        self._place = 0
        self._versioned = False

    def read(self) -> list[Event]:
        """The events since the last call; none where there is no file, or nothing new in it.

        Raises:
            DataError: the file cannot be read, or is of another version.
        """
        self.begun_anew = False
        try:
            with opened(self.path) as file:
                found = os.fstat(file.fileno())
                self._note((found.st_dev, found.st_ino), found.st_size)
                return list(self._events(file))
        except FileNotFoundError:
            self._note(None, 0)
            return []
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error

    def _note(self, file: tuple[int, int] | None, size: int) -> None:
        if file != self._file or size < self._place:
            self.begun_anew = self._file is not None
            self._file, self._place, self._versioned = file, 0, False

    def _events(self, file: Any) -> Iterator[Event]:
        while True:
            file.seek(self._place)
            data = file.read(CHUNK)
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                if len(data) < CHUNK:
                    return
                whole = data  # no line of ours is as long: the rest of it is no event either
            for line in whole.splitlines():
                if not self._versioned:
                    check_header(line, self.path)
                    self._versioned = True
                elif (event := read_event(line)) is not None:
                    yield event
            self._place += len(whole)


def read_events(path: Path) -> list[Event]:
    """All events of a file.

    Raises:
        DataError: there is none, it cannot be read, or is of another version.
    """
    if not path.exists():
        raise DataError(f"there is no {path}: no run of this version has written to that folder")
    return EventTail(path).read()


def read_event(line: bytes) -> Event | None:
    """The event on a line without its end; None where it is none."""
    if len(line) > LONGEST:
        return None
    try:
        told = json.loads(line, parse_int=_int, parse_float=_float, parse_constant=_float)
        check_characters(line, told)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    n, time, kind = (told.pop(name, None) for name in ("n", "time", "kind"))
    is_event = type(n) is int and type(time) in (int, float) and isinstance(kind, str)
    if not is_event:
        return None
    return Event(n=n, time=float(time), kind=kind, fields=MappingProxyType(told))


def _int(text: str) -> int:
    return _bounded(int(text))


def _float(text: str) -> float:
    return _bounded(float(text))


def _bounded(number: Number) -> Number:
    """`number`; `ValueError` where it is beyond `LARGEST`, or none."""
    if not abs(number) <= LARGEST:
        raise ValueError("a number that no event has")
    return number


def check_header(line: bytes, path: Path) -> None:
    """Raise unless a file's first line says that this version reads it.

    Raises:
        DataError: it is of another version, or no file of events.
    """
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise DataError(f"{path} is no file of events: its first line does not say so")
    if told.get("version") != VERSION:
        raise DataError(
            f"{path} has events of version {told.get('version')!r}, and this flower_split reads "
            f"{VERSION}: look at the run with the version that wrote it"
        )


def last_number(handle: int) -> int | None:
    """The number of the last event of an open file, after half a line at its end is cut off.

    Returns:
        -1 where it has no events, None where it is of another version or no file of events.
    """
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    head, *lines = whole.splitlines() or [b""]
    try:
        check_header(head, Path())
    except DataError:
        return None
    if len(whole) < len(data):
        os.ftruncate(handle, len(whole))
    return max((event.n for line in lines if (event := read_event(line))), default=-1)
