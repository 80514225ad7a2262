"""Kinds of what a result holds, by which a `result.json` is checked before anybody reads it."""

from collections.abc import Mapping
from typing import Any

Kind = type | dict[str, Any] | list[Any]
"""A type, `float` for a whole number too; `{"": kind}` for a mapping of texts to that kind, and
`[kind]` for a list of it. `object` is anything."""

LARGEST = 1e300
"""Magnitude of a number: sums of such numbers are finite."""

_NUMBERS: Kind = {"": {"": float}}
_METRICS: Kind = {"": {"": object}}

ROUND_KINDS: Mapping[str, Kind] = {
    "server_round": int,
    "train": _METRICS,
    "evaluate": _METRICS,
    "aggregated": {"": object},
    "failures": {"": str},
    "seconds": float,
    "train_counters": _NUMBERS,
    "evaluate_counters": _NUMBERS,
}
"""Fields of a `RoundResult`."""

RESULT_KINDS: Mapping[str, Kind] = {
    "rounds": [dict],
    "alone": [dict],
    "wire_bytes": _NUMBERS,
    "delivery_bytes": {"": float},
    "parameter_share": {"": float},
    "samples": {"": str},
    "config": {"": object},
    "versions": {"": str},
    "seconds": float,
    "failure": str,
    "state": str,
    "privacy": [dict],
    "prompt_format": {"": str},
}
"""Fields of a `RunResult`."""


def check_fields(fields: object, kinds: Mapping[str, Kind]) -> None:
    """Raise `ValueError` where one of `fields` is not of its kind; one that is missing is none."""
    if not isinstance(fields, dict):
        raise ValueError("a list or number where names and values are expected")
    for name, value in fields.items():
        if name in kinds and not is_of(value, kinds[name]):
            raise ValueError(f"{name} is not as a result has it")


def is_of(value: object, kind: Kind) -> bool:
    """Whether `value`, as JSON holds it, is of that kind."""
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(is_of(held, kind[""]) for held in value.values())
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_of(held, kind[0]) for held in value)
    if kind is int or kind is float:
        accepted = int if kind is int else (int, float)
        is_number = isinstance(value, accepted) and not isinstance(value, bool)
        return is_number and abs(value) <= LARGEST  # type: ignore[arg-type]
    return isinstance(value, kind)
