"""The table of strategies by name: ours, and those that other packages registered.

They do so by the entry-point group `flower_split.strategies`.

::

    [project.entry-points."flower_split.strategies"]
    mystrategy = "my_package.strategy:MyStrategy"

`strategy.name = "mystrategy"` then makes `MyStrategy`. It is called with the arguments
`fraction_train`, `fraction_evaluate`, `min_train_nodes`, `min_evaluate_nodes` and
`min_available_nodes`, with `lora` (the run's `LoraSettings`) if it has such an argument, and with
its own numeric arguments as `strategy.<argument>` gives them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from flower_split.errors import ConfigError
from flower_split.plugins import PluginTable

GROUP = "flower_split.strategies"

Make = Callable[..., Strategy]


class StrategyTable(PluginTable[Make]):
    """Our strategies and, after them, those that other packages registered.

    Args:
        own: Strategies whose names no plugin may take.
    """

    def __init__(self, own: Mapping[str, Make]) -> None:
        super().__init__(GROUP, own, key="strategy.name", noun="strategy")

    def checked(self, name: str, loaded: Any, packages: str) -> Make:
        """The strategy's class or function; what it makes is checked where it is made."""
        if not callable(loaded):
            raise ConfigError(
                f"strategy.name {name!r} of {packages} is no class or function that makes "
                f"a strategy, but a {type(loaded).__name__}"
            )
        return loaded  # type: ignore[no-any-return]
