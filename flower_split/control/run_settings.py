"""Settings of a run that make its trunk: what a strategy tells a service, and how it is read."""

from typing import Any

from flower_split.adapters import method_problems
from flower_split.config.resuming import settings
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.control.patterns import check_patterns
from flower_split.errors import ConfigError, WireError

_SECTIONS = ("model", "split", "lora", "peft", "train", "dp", "wire", "trunk")
_WHOLE = ("data.label", "num-server-rounds", "seed")
_OWN = (
    *("trunk.advertise", "trunk.device", "trunk.devices", "trunk.engine", "trunk.host"),
    *("trunk.port", "trunk.replicas", "trunk.stages"),
)
"""Of the machine that hosts the trunk."""
_MOST = 512
"""Settings of one run."""


def told_settings(config: SplitConfig) -> dict[str, Any]:
    """The settings by their run-config keys.

    Raises:
        ConfigError: the service could not read one of them as it is, or takes none such.
    """
    check_patterns(config)
    told = {
        key: value
        for key, value in settings(config).items()
        if ((key.partition(".")[0] in _SECTIONS and "." in key) or key in _WHOLE)
        and key not in _OWN
        and not key.startswith("trunk.service")
    }
    try:
        read = read_settings(told)
        same = all(getattr(read, name) == getattr(config, name) for name in _SECTIONS[:-1])
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            "settings of this run (of its section peft) cannot be told to a trunk service as they "
            "are: leave trunk.service empty"
        )
    return told


def read_settings(told: Any) -> SplitConfig:
    """The configuration that `told_settings` told, everything else at its default.

    Raises:
        WireError: they are no settings.
        ConfigError: they are none of a run.
    """
    if not isinstance(told, dict) or len(told) > _MOST:
        raise WireError("a run is opened by its settings, a table of run-config keys")
    for key in told:
        own = key in _OWN or key.startswith("trunk.service")
        if own or not (key in _WHOLE or key.partition(".")[0] in _SECTIONS):
            raise WireError(f"{key[:80]!r} is no setting by which a run is opened")
    return read_run_config(told, check_method=method_problems)
