"""What PEFT has made of a client model's adapter, read off its layers.

A client model is the stock model to whoever calls PEFT, and PEFT's calls reach the silo's layers
only. They leave their traces there: what is active, disabled, merged, scaled or frozen is read
before a pass, whichever call has brought it about.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.state import adapter_parameters
from flower_split.errors import AdapterError
from flower_split.segments import PassThrough

BASE = "__base__"
"""PEFT's name of no adapter, in `adapter_names`."""
USE_LOADED = (
    "to use a trained adapter, load it with flower_split.load_adapter, and into the trunk too"
)


@dataclass(frozen=True, kw_only=True)
class AdapterTraces:
    """How a client model's layers compute."""

    active: tuple[str, ...]
    """The adapters of all layers; none where they are disabled."""
    scale: float = 1.0
    """Factor of the scaling with which the session began."""


def tuner_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Name and module of every layer that PEFT has put an adapter on."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, PassThrough)
    ]


def read_scalings(model: nn.Module, adapter: str = ADAPTER) -> dict[str, float]:
    """The factor of `adapter` in every layer that has one."""
    return {
        name: float(layer.scaling[adapter])
        for name, layer in tuner_layers(model)
        if isinstance(layer, LoraLayer) and adapter in layer.scaling
    }


def read_traces(model: nn.Module, begun: Mapping[str, float]) -> AdapterTraces:
    """How the layers of `model` compute now.

    Args:
        model: A client model.
        begun: `read_scalings` as the session began.

    Raises:
        AdapterError: they do not compute alike, or in a way that the trunk cannot follow.
    """
    layers = tuner_layers(model)
    found = {_active(name, layer) for name, layer in layers}
    if len(found) != 1:
        raise AdapterError(
            f"the client model's layers compute with different adapters, {sorted(found)}: the "
            "trunk's follow them only if they are all alike. Use set_adapter and disable_adapter "
            "of the whole model"
        )
    (active,) = found
    scales = {
        _ratio(float(layer.scaling[ADAPTER]), begun[name])
        for name, layer in layers
        if name in begun and isinstance(layer, LoraLayer) and ADAPTER in layer.scaling
    }
    if ADAPTER not in active or not scales:
        return AdapterTraces(active=active)
    if max(scales) - min(scales) > 1e-9 * max(1.0, max(map(abs, scales))):
        raise AdapterError(
            "the scale of the adapter was changed by different factors in the client model's "
            f"layers, {sorted(scales)}: the trunk's follow one factor for all"
        )
    return AdapterTraces(active=active, scale=max(scales))


def _active(name: str, layer: BaseTunerLayer) -> tuple[str, ...]:
    if layer.merged_adapters:
        raise AdapterError(
            f"the adapter {', '.join(layer.merged_adapters)} is merged into the client model's "
            "layers and not into the trunk's: call unmerge_adapter(). The whole adapter is merged "
            "by flower-split export --merge"
        )
    by_row = _adapter_names(layer)
    if by_row is not None:
        if len(set(by_row)) != 1:
            raise AdapterError(
                "adapter_names asks for another adapter in each row, and the trunk computes a "
                "microbatch with one: call the model once for the rows of each"
            )
        return () if by_row[0] == BASE else (by_row[0],)
    if layer.disable_adapters:
        return ()
    return tuple(layer.active_adapters)


def _adapter_names(layer: BaseTunerLayer) -> list[str] | None:
    """The `adapter_names` of the pass that is under way; PEFT hands them over by a hook."""
    for hook in getattr(layer, "_forward_pre_hooks", {}).values():
        if isinstance(hook, partial) and "adapter_names" in hook.keywords:
            return list(hook.keywords["adapter_names"])
    return None


def _ratio(now: float, before: float) -> float:
    if now == before:
        return 1.0
    if before == 0.0:
        raise AdapterError("the adapter's scale was 0 as the session began, and no longer is")
    return now / before


def named(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The tensors of `adapter` by their names in the uncut model."""
    return dict(adapter_parameters(model, adapter))


def is_copy(model: nn.Module, adapter: str) -> bool:
    """Whether the silo's tensors and scalings of `adapter` are those of the session's own."""
    own, other = named(model, ADAPTER), named(model, adapter)
    return (
        bool(own)
        and own.keys() == other.keys()
        and all(torch.equal(own[name], other[name]) for name in own)
        and read_scalings(model, ADAPTER) == read_scalings(model, adapter)
    )


class VersionWatch:
    """Notices when adapter tensors are changed by anyone but those who have the trunk follow."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] | None = None

    def note(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors` as they are."""
        self._seen = dict(_versions(tensors))

    def changed(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of those that were changed, or are others, since they were noted."""
        if self._seen is None:
            self.note(tensors)
            return []
        now = dict(_versions(tensors))
        return sorted(n for n in now.keys() | self._seen if now.get(n) != self._seen.get(n))

    def forget(self) -> None:
        """Note them anew when they are next looked at."""
        self._seen = None


def _versions(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, tensor in tensors.items():
        yield name, (tensor.data_ptr(), tensor._version)


def check_plan(model: nn.Module, text: str, shown: Mapping[str, object]) -> None:
    """Raise `AdapterError` unless the client model's adapter is the session's, as `shown` has it.

    Args:
        model: The client model.
        text: What the session was opened with; empty for none.
        shown: Its fields.
    """
    if not text:
        return
    modules = shown.get("modules")
    if not isinstance(modules, list):
        return
    held = {
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        or isinstance(module, BaseTunerLayer)
    }
    wanted = {name for name in modules if name in held}
    layers = {n: m for n, m in tuner_layers(model) if ADAPTER in _adapters_of(m)}
    if wanted != layers.keys():
        differing = sorted(wanted ^ layers.keys())
        raise AdapterError(
            f"the client model has an adapter {ADAPTER!r} on {len(layers)} modules, and the "
            f"session's plan on {len(wanted)} of those that it holds (first difference: "
            f"{differing[0]}). Wrap it with flower_split.wrap(client_model, plan), or with "
            "get_peft_model and the same settings"
        )
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer):
            continue
        found = {"r": layer.r[ADAPTER], "alpha": float(layer.lora_alpha[ADAPTER])}
        for key, value in found.items():
            told = shown.get(key)
            if isinstance(told, int | float) and float(told) != float(value):
                raise AdapterError(
                    f"{name} has an adapter of {key} {value:g}, and the session's plan {told:g}: "
                    "wrap the client model with the plan that the session was opened with"
                )


def _adapters_of(layer: BaseTunerLayer) -> set[str]:
    return {key for part in layer.adapter_layer_names for key in getattr(layer, part, {})}
