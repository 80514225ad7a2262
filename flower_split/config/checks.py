"""Checks of configuration values, each with one wording for its error."""

import math
import re

from flower_split.errors import ConfigError


def at_least(name: str, value: int, least: int) -> None:
    """Raise `ConfigError` unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")


def in_range(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise `ConfigError` unless `value` is a finite number between `low` and `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not math.isfinite(value)
        or not low <= value <= high
        or (open_low and value == low)
        or (open_high and value == high)
    ):
        below = "below" if open_high else "at most"
        bounds = f"{'above' if open_low else 'at least'} {low:g} and {below} {high:g}"
        raise ConfigError(f"{name} must be a number {bounds}, not {value!r}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def device_name(name: str, value: str) -> None:
    """Raise `ConfigError` unless `value` can name a device; whether it is there is not checked."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ConfigError(f"{name} must be auto, cpu, mps, cuda or cuda:N, not {value!r}")
