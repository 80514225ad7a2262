"""The run config: Flower's flat table of dotted, kebab-case keys, read into a `SplitConfig`.

Keys under `app.` belong to the app's own code and are not read here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flower_split.config.keys import Key, keys_of, read_keys
from flower_split.config.sections import RUN_CONFIG, SplitConfig, StrategyConfig

OPTION_PREFIX = "strategy."


def run_keys() -> dict[str, Key]:
    """Every key that a run config may have, in the order of the sections.

    The arguments of single strategies, `strategy.<argument>`, and the fields of PEFT's configs,
    `peft.<field>`, are not among them.
    """
    return keys_of(SplitConfig)


def read_run_config(
    run_config: Mapping[str, Any],
    *,
    check_strategy: Callable[[StrategyConfig], list[str]] | None = None,
    check_method: Callable[[SplitConfig], list[str]] | None = None,
) -> SplitConfig:
    """The configuration that a Flower run config describes.

    Args:
        run_config: `context.run_config` of a ServerApp or ClientApp.
        check_strategy: Says what is wrong with the options of the chosen strategy.
        check_method: Says what is wrong with the adapters' method.

    Raises:
        ConfigError: with every problem of the run config at once, one a line.
    """

    def check(config: SplitConfig) -> list[str]:
        found = [] if check_strategy is None else check_strategy(config.strategy)
        return found + ([] if check_method is None else check_method(config))

    return read_keys(SplitConfig, run_config, where=RUN_CONFIG, check=check)
