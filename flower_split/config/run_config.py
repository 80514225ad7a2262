"""The run config: Flower's flat table of dotted, kebab-case keys, read into a `SplitConfig`.

Field `learning_rate` of section `train` is the key `train.learning-rate`; a field of `SplitConfig`
itself has no section. Keys under `app.` belong to the app's own code and are not read here.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from flower_split.config.sections import SplitConfig, StrategyConfig
from flower_split.errors import ConfigError

OWN_PREFIX = "app."
OPTION_PREFIX = "strategy."
_PLACEHOLDER = "missing"
_ENTRIES: Mapping[Any, Callable[[str], Any]] = {
    tuple[str, ...]: str,
    tuple[int, ...]: int,
    tuple[float, ...]: float,
}

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """One key of the run config and the field that it sets."""

    key: str
    section: str
    """Field of `SplitConfig` that holds the section; empty for a field of `SplitConfig` itself."""
    field: str
    type: Any
    """`str`, `int`, `float`, `bool`, or a tuple of any number of one of the first three."""
    default: Any
    """`dataclasses.MISSING` where the key must be given."""


def run_keys() -> dict[str, RunKey]:
    """Every key that a run config may have, in the order of the sections.

    The arguments of single strategies, `strategy.<argument>`, are not among them.
    """
    keys: dict[str, RunKey] = {}
    top = get_type_hints(SplitConfig)
    for entry in fields(SplitConfig):
        if is_dataclass(top[entry.name]):
            hints = get_type_hints(top[entry.name])
            found = [
                _run_key(entry.name, inner.name, hints[inner.name], inner.default)
                for inner in fields(top[entry.name])
                if hints[inner.name] != dict[str, float]
            ]
        else:
            found = [_run_key("", entry.name, top[entry.name], entry.default)]
        keys.update({key.key: key for key in found})
    return keys


def read_run_config(
    run_config: Mapping[str, Any],
    *,
    check_strategy: Callable[[StrategyConfig], list[str]] | None = None,
) -> SplitConfig:
    """The configuration that a Flower run config describes.

    Args:
        run_config: `context.run_config` of a ServerApp or ClientApp.
        check_strategy: Says what is wrong with the options of the chosen strategy.

    Raises:
        ConfigError: with every problem of the run config at once, one a line.
    """
    keys, problems = run_keys(), list[str]()
    values: dict[str, dict[str, Any]] = {}
    options: dict[str, float] = {}
    for name, value in run_config.items():
        if name in keys:
            try:
                values.setdefault(keys[name].section, {})[keys[name].field] = _typed(
                    keys[name], value
                )
            except ConfigError as error:
                problems.append(str(error))
        elif name.startswith(OPTION_PREFIX) and isinstance(value, (int, float)):
            options[name.removeprefix(OPTION_PREFIX).replace("-", "_")] = value
        elif not name.startswith(OWN_PREFIX):
            problems.append(f"unknown key {name!r}{nearest(name, keys)}")
    for required in (key for key in keys.values() if key.default is MISSING):
        held = values.setdefault(required.section, {})
        if required.key not in run_config:
            problems.append(f"{required.key} is missing: it has no default")
        held.setdefault(required.field, _PLACEHOLDER)
    if options:
        values.setdefault("strategy", {})["options"] = options

    sections: dict[str, Any] = {}
    for name, kind in get_type_hints(SplitConfig).items():
        if is_dataclass(kind):
            sections[name] = _build(kind, name, values.get(name, {}), keys, problems)
    config: SplitConfig = _build(
        SplitConfig, "", {**values.get("", {}), **sections}, keys, problems
    )
    if check_strategy is not None:
        problems += check_strategy(config.strategy)
    raise_problems(problems, "the run config")
    return config


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean …?` with the valid key most like `name`, or all of the valid ones."""
    valid = list(valid)
    close = difflib.get_close_matches(name.replace("_", "-"), valid, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid are {', '.join(sorted(valid))}"


def raise_problems(problems: list[str], where: str) -> None:
    """Raise `ConfigError` with all `problems`, each once, or do nothing when there are none."""
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        raise ConfigError(unique[0])
    if unique:
        lines = "".join(f"\n- {problem}" for problem in unique)
        raise ConfigError(f"{len(unique)} problems in {where}:{lines}")


def _run_key(section: str, field: str, kind: Any, default: Any) -> RunKey:
    key = ".".join(part.replace("_", "-") for part in (section, field) if part)
    return RunKey(key=key, section=section, field=field, type=kind, default=default)


def _build(
    kind: Any, section: str, values: dict[str, Any], keys: dict[str, RunKey], problems: list[str]
) -> Any:
    """An instance of the dataclass `kind`; each value it refuses goes to `problems`.

    A refused value is set back to its default and the rest is tried again, so that one
    refusal does not hide the next.
    """
    values = dict(values)
    while True:
        try:
            return kind(**values)
        except ConfigError as error:
            problems += str(error).splitlines()
            named = [
                keys[word].field
                for word in re.findall(r"[a-z0-9.-]+[a-z0-9]", str(error))
                if word in keys and keys[word].section == section
            ]
            refused = next((name for name in named if name in values), None)
            if refused is None:
                raise_problems(problems, "the run config")
                raise
            if _default(kind, refused) is MISSING:
                values[refused] = _PLACEHOLDER
            else:
                del values[refused]


def _default(kind: Any, field: str) -> Any:
    return next(entry.default for entry in fields(kind) if entry.name == field)


def _typed(key: RunKey, value: object) -> Any:
    if key.type is float and _is_number(value):
        return float(value)  # type: ignore[arg-type]
    if key.type is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if key.type in (str, bool) and isinstance(value, key.type):
        return value
    if key.type in _ENTRIES and isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        with contextlib.suppress(ValueError):
            return tuple(_ENTRIES[key.type](part) for part in parts)
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    entries = "names" if key.type == tuple[str, ...] else "numbers"
    wanted = words.get(key.type, f"text, with commas between several {entries}")
    raise ConfigError(f"{key.key} must be {wanted}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
