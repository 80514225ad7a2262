"""The modules that PEFT puts around those of the stock model, and the settings in them.

Whoever changes one of them by hand changes the adapter's computation without a call that the rest
of the model would hear of.
"""

from collections.abc import Iterator
from typing import Any, cast

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flower_split.adapters.plan import ADAPTER


def tuner_parts(layer: BaseTunerLayer) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of a layer of PEFT's and of all in it that computes the session's adapter.

    Without what it was put around, other adapters, and dropout, which has a watch of its own.

    Args:
        layer: One of `tuner_layers`.
    """
    holder = cast("nn.Module", layer)
    yield "", holder
    for name, child in holder.named_children():
        if name == "base_layer" or "drop" in name:
            continue
        for inner, module in child.named_modules():
            computes = not isinstance(module, nn.ModuleDict | nn.ParameterDict)
            if computes and inner.partition(".")[0] in ("", ADAPTER):
                yield f".{name}.{inner}".rstrip("."), module


def tuner_settings(module: nn.Module) -> dict[str, Any]:
    """The plain settings by which one of `tuner_parts` computes the session's adapter.

    Without the scale of LoRA, which a trunk follows.
    """
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if name == "scaling" and isinstance(module, LoraLayer):
            continue
        if isinstance(value, dict):
            value = value.get(ADAPTER)
            if name == "lora_variant":
                value = type(value).__name__
        if isinstance(value, bool | int | float | str):
            found[name] = value
    return found
