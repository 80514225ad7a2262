"""Overrides: what `-c 'key=value key=value'` says, read, merged into an app's settings, passed on.

Flower reads the same syntax, but drops what it does not understand, takes the last of two options
that name the same section, and answers an unknown key with `Invalid run configuration.`
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from flower_split.config.problems import nearest, raise_problems
from flower_split.config.run_config import run_keys
from flower_split.errors import ConfigError, UsageError
from flower_split.text_tables import read_toml

Value: TypeAlias = str | int | float | bool
Settings: TypeAlias = dict[str, Value]

_PAIR = re.compile(r"""([^\s='"]+)=('[^']*'|"[^"]*"|\S+)(?=\s|$)""")
_WORD = re.compile(r"[A-Za-z_][\w./:-]*")
WHERE = "-c"
"""What errors call the overrides."""


def parse_overrides(given: Sequence[str]) -> Settings:
    """The settings that all `-c` options together name; of one key the last value counts.

    Args:
        given: Each `key=value key=value`, with text in quotes, or the path of a `.toml` file.

    Raises:
        UsageError: with everything that is no setting.
    """
    found, problems = Settings(), list[str]()
    for text in given:
        if text.endswith(".toml") and "=" not in text:
            found |= _read_file(Path(text).expanduser(), problems)
            continue
        for key, value in _PAIR.findall(text):
            try:
                found |= flat(read_toml(f"{key} = {value}"), key)
            except ValueError:  # a ConfigError is one
                problems.append(_misread(key, value))
        if left := _PAIR.sub("", text).strip():
            problems.append(
                f"{WHERE} {text!r}: {left!r} is no setting; expected key=value without spaces "
                "around the =, and text in quotes"
            )
    raise_problems(problems, WHERE, UsageError)
    return found


def override_problems(settings: Mapping[str, Value], overrides: Mapping[str, Value]) -> list[str]:
    """Every override that an app with `settings` has no key for. Flower takes no others."""
    problems = []
    for key in overrides.keys() - settings.keys():
        if key in run_keys():
            section, _, name = key.rpartition(".")
            table = f"[tool.flwr.app.config{'.' * bool(section)}{section}]"
            problems.append(
                f"{WHERE} {key}: Flower replaces only keys that the app's pyproject.toml has; add "
                f"{name} to {table} there"
            )
        else:
            problems.append(f"{WHERE} {key}: the app has no such key{nearest(key, settings)}")
    return sorted(problems)


def rendered(overrides: Mapping[str, Value]) -> str:
    """`overrides` as one text for `flwr run -c`, which reads the same values out of it."""
    return " ".join(f"{key}={_literal(value)}" for key, value in overrides.items())


def flat(table: Mapping[str, Any], where: str = "") -> Settings:
    """A table of TOML with its sections' keys dotted.

    Raises:
        ConfigError: a value is neither text, number, nor true or false.
    """
    found = Settings()
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": held for inner, held in flat(value, where).items()}
        elif isinstance(value, (str, int, float, bool)):
            found[key] = value
        else:
            raise ConfigError(
                f"{where or key} must be text, a number, or true or false, not {value!r}: several "
                "values are one text with commas"
            )
    return found


def _read_file(path: Path, problems: list[str]) -> Settings:
    try:
        return flat(read_toml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problems.append(f"{WHERE} {path} cannot be read: {error}")
        return {}


def _misread(key: str, value: str) -> str:
    if _WORD.fullmatch(value):
        return f"{WHERE} {key}={value}: text needs quotes, such as {WHERE} '{key}=\"{value}\"'"
    return (
        f"{WHERE} {key}={value}: expected text in quotes, a number, or true or false; several "
        "values are one text with commas"
    )


def _literal(value: Value) -> str:
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)[1:-1]
        # Flower's expression for a pair ends at the next quote, escaped or not.
        return '"' + text.replace('\\"', "\\u0022").replace("\x7f", "\\u007f") + '"'
    return json.dumps(value) if isinstance(value, (bool, int)) else repr(value)
