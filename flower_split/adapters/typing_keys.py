"""Typing: a value of the run config as the type that a field of PEFT's config has.

A run config has text, numbers and booleans only: a list is text with commas between its entries, a
dict is JSON.
"""

import re
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flower_split.errors import ConfigError
from flower_split.text_tables import read_json

_LISTS = (list, tuple, set)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def typing_hints(kind: type[Any]) -> dict[str, Any]:
    """The types of the fields of `kind`, those left out that a run config cannot write."""
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if any(map(_is_written, _members(hint)))}


def typed(key: str, hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it.

    Args:
        key: What errors call it.
        hint: Of the field.
        value: Text, number or boolean.

    Raises:
        ConfigError: it is nothing that `hint` takes.
    """
    members = list(_members(hint))
    for read in (_literal, _plain, _dict, _entries):
        for found in read(members, value):
            return found
    wanted = " or ".join(dict.fromkeys(_in_words(members)))
    raise ConfigError(f"{key} must be {wanted}, not {value!r}")


def _members(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(member)
    elif hint is not type(None):
        yield hint


def _is_written(member: Any) -> bool:
    origin = get_origin(member) or member
    return origin is Literal or origin in (*_WORDS, dict, *_LISTS)


def _literal(members: list[Any], value: Any) -> Iterator[Any]:
    for member in members:
        if get_origin(member) is Literal:
            for choice in get_args(member):
                if type(choice) is type(value) and choice == value:
                    yield value


def _plain(members: list[Any], value: Any) -> Iterator[Any]:
    kind = type(value)
    if kind is str:
        lists = any((get_origin(m) or m) in _LISTS for m in members)
        is_one = value == "all-linear" or not re.fullmatch(r"[\w.,\s-]*", value)
        if str in members and (is_one or not lists):
            yield value
    elif kind in members:
        yield value
    elif kind is int and float in members:
        yield float(value)


def _dict(members: list[Any], value: Any) -> Iterator[Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        for member in members:
            if (get_origin(member) or member) is dict:
                try:
                    yield read_json(value)
                except ValueError:
                    return


def _entries(members: list[Any], value: Any) -> Iterator[Any]:
    """A list of text with commas; of numbers also a single one."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
    elif type(value) is int:
        parts = [str(value)]
    else:
        return
    for member in members:
        if (get_origin(member) or member) in _LISTS:
            (inner, *_) = get_args(member) or (str,)
            if inner is int and parts and all(re.fullmatch(r"-?\d+", part) for part in parts):
                yield [int(part) for part in parts]
            elif inner is str and parts:
                yield parts


def _in_words(members: Iterable[Any]) -> Iterator[str]:
    for member in members:
        origin = get_origin(member) or member
        if origin is Literal:
            yield ", ".join(map(repr, get_args(member)))
        elif origin in _LISTS:
            yield "text, with commas between several entries"
        elif origin is dict:
            yield "text with a JSON object"
        elif origin in _WORDS:
            yield _WORDS[origin]
