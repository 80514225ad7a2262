"""The kinds of events, with their fields: what a line of `events.jsonl` can tell.

A kind or a field that is added leaves the version as it is: readers pass over what they do not
know. One that is dropped, or means something else, raises it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

EVENTS = "events.jsonl"
"""Name of the file in a run's output folder."""
FORMAT = "flower_split.events"
VERSION = 1
LONGEST = 1 << 20
"""Bytes of a line."""
LONGEST_TEXT = 500
"""Characters of a reason or a name that are kept."""

OWN = ("n", "time", "kind", "alone")
"""Fields that every event may have: its number, which grows; seconds since 1970 (UTC); its kind;
and true where the baseline, in which every silo trains alone, is meant and not the run itself."""

_SILO = ("round", "purpose", "silo")
KINDS: Mapping[str, tuple[str, ...]] = {
    "run-begun": (
        *("rounds", "next_round", "model", "parameters", "bottom_layers", "top_layers"),
        *("method", "modules", "trunk_adapters", "strategy", "config", "versions"),
    ),
    "baseline-begun": ("rounds", "next_round"),
    "round-begun": ("round", "rounds"),
    "exchange-begun": ("round", "purpose", "asked"),
    "silo-joined": ("silo",),
    "silo-began": _SILO,
    "silo-finished": _SILO,
    "silo-lost": (*_SILO, "why"),
    "silo-left": ("silo", "why"),
    "silo-round": (*_SILO, "counted", "why", "metrics", "counters"),
    "aggregated": ("round", "counted", "asked", "metrics", "seconds"),
    "evaluated": ("round", "counted", "asked", "metrics", "seconds"),
    "sample-written": ("round",),
    "checkpoint-written": ("round", "complete", "best"),
    "round-ended": ("round", "seconds"),
    "gauges": ("sessions", "waiting", "occupancy", "silos"),
    "run-ended": ("state", "why", "seconds", "left"),
}
"""The fields of every kind, besides `OWN`."""

STATES = ("completed", "failed")
"""How a run can have ended."""


def header() -> bytes:
    """The first line of the file."""
    return _line({"format": FORMAT, "version": VERSION})


def line_of(kind: str, fields: Mapping[str, Any], *, n: int, time: float) -> bytes:
    """The line of an event, its end included: JSON, ASCII.

    Texts are cut at `LONGEST_TEXT` characters, and numbers that JSON cannot hold become null.

    Raises:
        ValueError: no event of this kind has such fields, or the line would be too long.
    """
    strange = fields.keys() - {*KINDS[kind], *OWN}
    if strange:
        raise ValueError(f"an event {kind} has no field {', '.join(sorted(strange))}")
    line = _line({"n": n, "time": round(time, 3), "kind": kind, **_plain(fields)})
    if len(line) > LONGEST:
        raise ValueError(f"an event of {len(line)} bytes, expected at most {LONGEST}")
    return line


def numbers(told: Mapping[str, Any]) -> dict[str, int | float]:
    """What is a single number in `told`: metrics may be lists too, which are no events'."""
    return {
        name: value
        for name, value in told.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_text(str(name)): _plain(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _text(text: str) -> str:
    """One line, cut, and no half of a surrogate pair, which few readers of JSON take."""
    shown = "".join(" " if ord(c) < 32 or "\ud800" <= c <= "\udfff" else c for c in text)
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[: LONGEST_TEXT - 2]} …"
