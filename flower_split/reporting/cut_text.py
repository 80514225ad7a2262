"""What a run's settings say of the layers that silos hold, in words."""

from collections.abc import Mapping
from typing import Any

from flower_split.config.model import layers_text


def layers_at_silos(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Bottom and top layers, such as `1` or `1 to 3`.

    Args:
        settings: Run-config keys, perhaps those alone that were given.
    """

    def told(end: str) -> str:
        fewest, most = (
            settings.get(key, usual)
            for key, usual in ((f"split.{end}-layers", 1), (f"split.max-{end}-layers", 0))
        )
        if isinstance(fewest, int) and isinstance(most, int):
            return layers_text(fewest, most)
        return str(fewest)

    return told("bottom"), told("top")
