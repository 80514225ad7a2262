"""One entry of a ledger: a line of JSON that holds the hash of the line before it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flower_split.errors import LedgerError

VERSION = 1
"""Of the lines' fields."""
NOTHING = "0" * 64
"""What the first entry of a ledger has for the hash of the one before it."""
CHAIN = ("n", "previous", "time")
"""Fields of every entry: its number from 0, the hash before it, the time (UTC, ISO 8601)."""
LONGEST = 1 << 16
"""Bytes of a line."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry as it was read."""

    n: int
    """Its number, from 0."""
    previous: str
    """SHA-256 of the line before it, hexadecimal; `NOTHING` before the first."""
    time: str
    """When it was written, UTC, ISO 8601."""
    fields: Mapping[str, Any]
    """What it tells: `kind`, and what belongs to that."""
    hash: str
    """SHA-256 of its own line, hexadecimal."""


def line_of(fields: Mapping[str, Any], *, n: int, previous: str, time: str) -> bytes:
    """The line of an entry, without its end: JSON with sorted keys and no spaces, ASCII.

    Raises:
        LedgerError: `fields` are no JSON, have a name of `CHAIN`, or are too long.
    """
    taken = [name for name in CHAIN if name in fields]
    if taken:
        raise LedgerError(f"{', '.join(taken)} of an entry are set by the ledger itself")
    told = {**fields, "n": n, "previous": previous, "time": time}
    try:
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"an entry of a ledger must be JSON: {error}") from error
    line = text.encode("ascii")
    if len(line) > LONGEST:
        raise LedgerError(f"an entry of {len(line)} bytes, expected at most {LONGEST}")
    return line


def hash_of(line: bytes) -> str:
    """SHA-256 of a line without its end, hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def read_line(line: bytes) -> Entry:
    """The entry on a line without its end.

    Raises:
        LedgerError: it is none.
    """
    if len(line) > LONGEST:
        raise LedgerError(f"it has more than {LONGEST} bytes")
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LedgerError("it is no JSON") from error
    if not isinstance(told, dict):
        raise LedgerError("it is no JSON object")
    n, previous, time = (told.pop(name, None) for name in CHAIN)
    if type(n) is not int or not isinstance(previous, str) or not isinstance(time, str):
        raise LedgerError(f"it lacks one of {', '.join(CHAIN)}")
    return Entry(
        n=n, previous=previous, time=time, fields=MappingProxyType(told), hash=hash_of(line)
    )
