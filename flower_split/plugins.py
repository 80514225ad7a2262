"""Plug-ins: what other packages add to a table of ours, by an entry-point group.

::

    [project.entry-points."flower_split.strategies"]
    mystrategy = "my_package.strategy:MyStrategy"

A package is imported when its plug-in is asked for, and not before.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from flower_split.errors import ConfigError

Value = TypeVar("Value")


class PluginTable(Mapping[str, Value]):
    """A table and, after it, what other packages registered under further names.

    Args:
        group: The entry-point group.
        own: Entries whose names no plug-in may take.
        key: What names an entry, for errors, such as the run-config key `strategy.name`.
        noun: What an entry is, for errors, such as `strategy`.
    """

    def __init__(self, group: str, own: Mapping[str, Value], *, key: str, noun: str) -> None:
        self._group = group
        self._own = own
        self._key = key
        self._noun = noun

    def __getitem__(self, name: str) -> Value:
        """The entry of that name.

        Raises:
            KeyError: there is none.
            ConfigError: several packages register it, or it cannot be imported.
        """
        found = registered(self._group).get(name, [])
        if name in self._own:
            if found:
                raise ConfigError(
                    f"{_packages(found)} registers a {self._noun} {name!r}, which is the name of "
                    "one of flower_split's own: uninstall it, or have it renamed"
                )
            return self._own[name]
        if not found:
            raise KeyError(name)
        if len(found) > 1:
            raise ConfigError(
                f"{self._key} {name!r} is registered by {_packages(found)}: uninstall all but one"
            )
        try:
            loaded: Any = found[0].load()
        except Exception as error:
            raise ConfigError(
                f"{self._key} {name!r} of {_packages(found)} cannot be imported from "
                f"{found[0].value}: {type(error).__name__}: {error}"
            ) from error
        return self.checked(name, loaded, _packages(found))

    def checked(self, name: str, loaded: Any, packages: str) -> Value:
        """What a plug-in's module held under its name, or `ConfigError` where it is of no use.

        Args:
            name: Of the entry.
            loaded: What was imported.
            packages: Who registered it.
        """
        found: Value = loaded
        return found

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names that other packages add."""
        return tuple(name for name in registered(self._group) if name not in self._own)

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry of that name, usable or not."""
        return name in self._own or name in registered(self._group)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self.plugins

    def __len__(self) -> int:
        return len(list(iter(self)))


def registered(group: str) -> Mapping[str, Sequence[EntryPoint]]:
    """What the installed packages register in an entry-point group, by name."""
    return _found_on(group, tuple(sys.path))


@cache
def _found_on(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """As above, for a path of modules; looking takes some tens of milliseconds."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def _packages(found: Sequence[EntryPoint]) -> str:
    names = sorted({entry.dist.name if entry.dist else "an unknown package" for entry in found})
    return " and ".join(names)


def load_named(places: Mapping[str, str]) -> dict[str, Any]:
    """The objects of a table of ours by their names, each at its `module:attribute`."""
    found: dict[str, Any] = {}
    for name, place in places.items():
        module, _, attribute = place.partition(":")
        found[name] = getattr(import_module(module), attribute)
    return found
