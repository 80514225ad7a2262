"""Strategies of other packages, registered by the entry-point group `flower_split.strategies`.

::

    [project.entry-points."flower_split.strategies"]
    mystrategy = "my_package.strategy:MyStrategy"

`strategy.name = "mystrategy"` then makes `MyStrategy`. It is called with the arguments
`fraction_train`, `fraction_evaluate`, `min_train_nodes`, `min_evaluate_nodes` and
`min_available_nodes`, with `lora` (the run's `LoraSettings`) if it has such an argument, and with
its own numeric arguments as `strategy.<argument>` gives them.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from flwr.serverapp.strategy import Strategy

from flower_split.errors import ConfigError

GROUP = "flower_split.strategies"

Make = Callable[..., Strategy]


class WithPlugins(Mapping[str, Make]):
    """A table of strategies and, after them, those that other packages registered.

    A package is imported when its strategy is asked for, and not before.

    Args:
        table: Strategies whose names no plugin may take.
    """

    def __init__(self, table: Mapping[str, Make]) -> None:
        self._table = table
        self._plugins: dict[str, list[EntryPoint]] = {}
        for found in entry_points(group=GROUP):
            self._plugins.setdefault(found.name, []).append(found)

    def __getitem__(self, name: str) -> Make:
        """The strategy's class or function.

        Raises:
            KeyError: there is none of that name.
            ConfigError: several packages register it, or it cannot be imported.
        """
        found = self._plugins.get(name, [])
        if name in self._table:
            if found:
                raise ConfigError(
                    f"{_packages(found)} registers a strategy {name!r}, which is the name of one "
                    "of flower_split's own: uninstall it, or have it renamed"
                )
            return self._table[name]
        if not found:
            raise KeyError(name)
        if len(found) > 1:
            raise ConfigError(
                f"strategy.name {name!r} is registered by {_packages(found)}: uninstall all but one"
            )
        try:
            make = found[0].load()
        except Exception as error:
            raise ConfigError(
                f"strategy.name {name!r} of {_packages(found)} cannot be imported from "
                f"{found[0].value}: {type(error).__name__}: {error}"
            ) from error
        if not callable(make):
            raise ConfigError(
                f"strategy.name {name!r} of {_packages(found)} is no class or function that makes "
                f"a strategy, but a {type(make).__name__}"
            )
        return make  # type: ignore[no-any-return]  # what it makes is checked where it is made

    def __contains__(self, name: object) -> bool:
        """Whether a strategy has that name, usable or not."""
        return name in self._table or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        yield from self._table
        yield from (name for name in self._plugins if name not in self._table)

    def __len__(self) -> int:
        return len(list(iter(self)))


def _packages(found: list[EntryPoint]) -> str:
    names = sorted({entry.dist.name if entry.dist else "an unknown package" for entry in found})
    return " and ".join(names)
