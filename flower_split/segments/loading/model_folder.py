"""What a model's folder must be: a whole model, and no adapter in its place or beside it."""

import re
from pathlib import Path

from flower_split.errors import WeightsError
from flower_split.segments.loading.source import Source
from flower_split.text_tables import read_json

ADAPTER_CONFIG = "adapter_config.json"
_HUB_CACHE = re.compile(r"models--(.+)")


def refuse_adapter_beside(source: Source) -> None:
    """Check that no PEFT adapter lies beside the model's weights.

    transformers applies one that does. A run would be about another model than the one that stock
    code loads from the same folder, and its own adapter would not hold what that one adds.

    Raises:
        WeightsError: one does.
    """
    if (source.folder / ADAPTER_CONFIG).is_file():
        raise WeightsError(
            f"{source.name} has a PEFT adapter ({ADAPTER_CONFIG}) beside the model's weights, "
            "which transformers would apply and a run would not. Move the adapter's files to a "
            "folder of their own to train the model without it. To go on from the adapter, write "
            "the model with it merged in (flower-split export ADAPTER --merge MODEL --out DIR) "
            "and give that folder as model.name"
        )


def without_config(source: Source) -> str:
    """What is said of a folder that has no `config.json`: what it is instead, and what to give."""
    if (source.folder / ADAPTER_CONFIG).is_file():
        base = _base_of(source.folder / ADAPTER_CONFIG)
        of = f" of {base!r}" if base else ""
        return (
            f"{source.name} is a PEFT adapter{of}, not a model: give its base model as model.name. "
            "To go on from the adapter, write the base model with it merged in (flower-split "
            "export ADAPTER --merge MODEL --out DIR) and give that folder as model.name"
        )
    said = f"{source.folder} has no config.json; expected a model's folder"
    if match := _HUB_CACHE.fullmatch(source.folder.name):
        return f"{said}. It is the hub's cache of {match[1].replace('--', '/')!r}: give that name"
    inside = sorted(path.parent.name for path in source.folder.glob("*/config.json"))
    return f"{said}. There are models in it: {', '.join(inside)}" if inside else said


def _base_of(path: Path) -> str:
    try:
        values = read_json(path.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(values.get("base_model_name_or_path") or "") if isinstance(values, dict) else ""
