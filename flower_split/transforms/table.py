"""The table of transforms: classes by their name in a configuration and in the handshake."""

import inspect
from collections.abc import Mapping
from typing import Any

from flower_split.config.wire import TRANSFORM_CLASSES, TRANSFORM_GROUP
from flower_split.errors import ConfigError
from flower_split.plugins import PluginTable, load_named
from flower_split.transforms.transform import Transform

TransformClass = type[Transform]


class TransformTable(PluginTable[TransformClass]):
    """Our transforms and, after them, those that other packages registered.

    Args:
        own: Transforms whose names no plug-in may take.
    """

    def __init__(self, own: Mapping[str, TransformClass]) -> None:
        super().__init__(TRANSFORM_GROUP, own, key="wire.transforms", noun="transform")

    def checked(self, name: str, loaded: Any, packages: str) -> TransformClass:
        """The class, which must be named as it is registered."""
        what = f"wire.transforms {name!r} of {packages}"
        if not (inspect.isclass(loaded) and issubclass(loaded, Transform)):
            raise ConfigError(f"{what} is {loaded!r}, expected a class of flower_split's Transform")
        called = getattr(loaded, "name", None)
        if called != name:
            raise ConfigError(f"{what} calls itself {called!r}: name it alike in both places")
        return loaded


def _own() -> dict[str, TransformClass]:
    rows: dict[str, TransformClass] = load_named(TRANSFORM_CLASSES)
    for name, kind in rows.items():
        if kind.name != name:
            raise ImportError(f"transform {kind.name!r} differs from its row {name!r}")
    return rows


TRANSFORM_TABLE = TransformTable(_own())
