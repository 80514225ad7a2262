"""Keys: a flat table of dotted, kebab-case keys, read into a dataclass that is made of sections.

Field `learning_rate` of section `train` is the key `train.learning-rate`; a field of the whole
that is no section has none in front. A section's field of the type `dict[str, float]` takes every
further number that is given under the section's name, one of `dict[str, float | str]` every further
value. Keys under `app.` are not read here.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from flower_split.config.problems import nearest, raise_problems
from flower_split.errors import ConfigError

OWN_PREFIX = "app."
"""Beginning of the keys that belong to the app's own code."""
_PLACEHOLDER = "missing"
_ENTRIES: Mapping[Any, Callable[[str], Any]] = {
    tuple[str, ...]: str,
    tuple[int, ...]: int,
    tuple[float, ...]: float,
}

_TAKERS: Mapping[Any, type | tuple[type, ...]] = {
    dict[str, float]: (int, float),
    dict[str, float | str]: (int, float, str),
}
"""What fields of a type take of the keys that no field has."""

Whole = TypeVar("Whole")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a flat table and the field that it sets."""

    key: str
    section: str
    """Field of the whole that holds the section; empty for a field of the whole itself."""
    field: str
    type: Any
    """`str`, `int`, `float`, `bool`, or a tuple of any number of one of the first three."""
    default: Any
    """`dataclasses.MISSING` where the key must be given."""


def keys_of(kind: type[Any]) -> dict[str, Key]:
    """Every key by which a table sets a field of the dataclass `kind`, in the sections' order.

    What a field of `_TAKERS` takes beside them is not among them.
    """
    keys: dict[str, Key] = {}
    top = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(top[entry.name]):
            hints = get_type_hints(top[entry.name])
            found = [
                _key(entry.name, inner.name, hints[inner.name], inner.default)
                for inner in fields(top[entry.name])
                if hints[inner.name] not in _TAKERS
            ]
        else:
            found = [_key("", entry.name, top[entry.name], entry.default)]
        keys.update({key.key: key for key in found})
    return keys


def read_keys(
    kind: type[Whole],
    table: Mapping[str, Any],
    *,
    where: str,
    check: Callable[[Whole], list[str]] | None = None,
) -> Whole:
    """The dataclass `kind` that a table describes.

    Args:
        kind: Made of sections, each a dataclass that checks itself, and of plain fields.
        table: Values by key.
        where: What errors call the table.
        check: Says what else is wrong with what was read.

    Raises:
        ConfigError: with every problem of the table at once, one a line.
    """
    keys, problems = keys_of(kind), list[str]()
    takers = {prefix: taker for prefix, *taker in _takers(kind)}
    values: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        prefix = name.partition(".")[0] + "."
        if name in keys:
            try:
                values.setdefault(keys[name].section, {})[keys[name].field] = _typed(
                    keys[name], value
                )
            except ConfigError as error:
                problems.append(str(error))
        elif prefix in takers and isinstance(value, takers[prefix][2]):
            section, field, _ = takers[prefix]
            further = values.setdefault(section, {}).setdefault(field, {})
            further[name.removeprefix(prefix).replace("-", "_")] = value
        elif not name.startswith(OWN_PREFIX):
            problems.append(f"unknown key {name!r}{nearest(name, keys)}")
    for required in (key for key in keys.values() if key.default is MISSING):
        held = values.setdefault(required.section, {})
        if required.key not in table:
            problems.append(f"{required.key} is missing: it has no default")
        held.setdefault(required.field, _PLACEHOLDER)

    sections: dict[str, Any] = {}
    for name, section_kind in get_type_hints(kind).items():
        if is_dataclass(section_kind):
            given = values.get(name, {})
            sections[name] = _build(section_kind, name, given, keys, problems, where)
    given = {**values.get("", {}), **sections}
    whole: Whole = _build(kind, "", given, keys, problems, where)
    if check is not None:
        problems += check(whole)
    raise_problems(problems, where)
    return whole


def _takers(kind: type[Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Prefix, section, field and values' types of every field that takes further keys."""
    for section, section_kind in get_type_hints(kind).items():
        if is_dataclass(section_kind):
            for field, hint in get_type_hints(section_kind).items():
                if hint in _TAKERS:
                    yield f"{section.replace('_', '-')}.", section, field, _TAKERS[hint]


def _key(section: str, field: str, kind: Any, default: Any) -> Key:
    key = ".".join(part.replace("_", "-") for part in (section, field) if part)
    return Key(key=key, section=section, field=field, type=kind, default=default)


def _build(
    kind: Any,
    section: str,
    values: dict[str, Any],
    keys: dict[str, Key],
    problems: list[str],
    where: str,
) -> Any:
    """An instance of the dataclass `kind`; each value it refuses goes to `problems`.

    A refused value is set back to its default and the rest is tried again, so that one
    refusal does not hide the next.
    """
    values, defaults = dict(values), set[str]()
    while True:
        try:
            return kind(**values)
        except ConfigError as error:
            named = [
                keys[word].field
                for word in re.findall(r"[a-z0-9.-]+[a-z0-9]", str(error))
                if word in keys and keys[word].section == section
            ]
            if not defaults.intersection(named):  # of what the user has set
                problems += error.problems
            refused = next((name for name in named if name in values), None)
            if refused is None:
                raise_problems(problems, where)
                raise
            defaults.add(refused)
            if _default(kind, refused) is MISSING:
                values[refused] = _PLACEHOLDER
            else:
                del values[refused]


def _default(kind: Any, field: str) -> Any:
    return next(entry.default for entry in fields(kind) if entry.name == field)


def _typed(key: Key, value: object) -> Any:
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
