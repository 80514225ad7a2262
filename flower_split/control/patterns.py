"""Patterns: a run at a service names modules, and has no regular expression matched against them.

PEFT matches some of what a run config says as regular expressions. One of a few characters can take
longer than anyone waits, and nothing else of the process goes on meanwhile.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError

MOST_NAMES = 1024
"""Names in one value: each is compared with every module of the model."""
_FREE_TEXT = frozenset({"prompt_tuning_init_text", "tokenizer_name_or_path"})
"""Keys whose text PEFT compares with nothing."""
_LONGEST = 256
_NAME = re.compile(r"[\w.-]*")


def check_patterns(config: SplitConfig) -> None:
    """Raise `ConfigError` where PEFT would match a regular expression, or too many names."""
    named = {"lora.target-modules": list(config.lora.target_modules)}
    for field, value in config.peft.options.items():
        if field not in _FREE_TEXT and isinstance(value, str):
            named[f"peft.{field.replace('_', '-')}"] = list(_names(value))
    for key, names in named.items():
        if len(names) > MOST_NAMES:
            raise ConfigError(
                f"{key} has {len(names)} names, and a trunk service takes {MOST_NAMES}: leave "
                "trunk.service empty"
            )
        for name in names:
            if len(name) > _LONGEST or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{key} has {name[:80]!r}, and a trunk service matches no regular expression: "
                    "name the modules, with commas between them, or leave trunk.service empty"
                )


def _names(value: str) -> Iterator[str]:
    """What is compared with names of modules in the value of a key."""
    try:
        told = json.loads(value)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        yield from _keys_of(told)
    else:
        yield from (part.strip() for part in value.split(","))


def _keys_of(told: dict[str, Any]) -> Iterator[str]:
    for key, value in told.items():
        yield key
        if isinstance(value, dict):
            yield from _keys_of(value)
        elif isinstance(value, str):
            yield value
