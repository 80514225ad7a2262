"""What PEFT has made of a client model's adapter, read off its layers.

A client model is the stock model to whoever calls PEFT, and PEFT's calls reach the silo's layers
only. They leave their traces there: what is active, disabled, merged, scaled or frozen is read
before a pass, whichever call has brought it about.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from flower_split.adapters.plan import ADAPTER, PEFT_PREFIX
from flower_split.adapters.state import adapter_parameters
from flower_split.errors import AdapterError, WireError
from flower_split.segments import PassThrough

BASE = "__base__"
"""PEFT's name of no adapter, in `adapter_names`."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Starts of a LoRA adapter that leave the base weights as they are."""
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


def base_modules_begun(model: nn.Module) -> set[int]:
    """Ids of the stock modules whose weights PEFT may have changed, as PiSSA's start does."""
    if all(map(_leaves_weights, getattr(model, "peft_config", {}).values())):
        return set()
    return {id(bare_module(cast("nn.Module", layer))) for _, layer in tuner_layers(model)}


def _leaves_weights(config: PeftConfig) -> bool:
    """Whether an adapter of these settings begins beside the base weights, as they are."""
    return (
        isinstance(config, LoraConfig)
        and config.init_lora_weights in _PLAIN_STARTS
        and config.kasa_config is None
    )


def bare_module(module: nn.Module) -> nn.Module:
    """The stock module within what PEFT has put around it."""
    while not isinstance(module, PassThrough):
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            break
    return module


def read_scalings(model: nn.Module, *adapters: str) -> dict[tuple[str, int], float]:
    """The factors of `adapters` in every layer that has one, by its name and the adapter's place.

    Args:
        model: A client model.
        adapters: Names; none stands for the session's own.
    """
    return {
        (name, place): float(layer.scaling[adapter])
        for name, layer in tuner_layers(model)
        for place, adapter in enumerate(adapters or (ADAPTER,))
        if isinstance(layer, LoraLayer) and adapter in layer.scaling
    }


def begun_scalings(model: nn.Module, *adapters: str) -> dict[tuple[str, int], float]:
    """What `read_scalings` was when PEFT made the adapters: the trunk's are so.

    Args:
        model: A client model.
        adapters: Their names.
    """
    layers = dict(tuner_layers(model))
    begun: dict[tuple[str, int], float] = {}
    for (name, place), now in read_scalings(model, *adapters).items():
        layer: Any = layers[name]
        rank, alpha = layer.r[adapters[place]], layer.lora_alpha[adapters[place]]
        if isinstance(layer, AdaLoraLayer):
            begun[name, place] = now
        elif layer.use_rslora.get(adapters[place], False):
            begun[name, place] = float(alpha / math.sqrt(rank))
        else:
            begun[name, place] = float(alpha / rank)
    return begun


def read_traces(model: nn.Module, begun: Mapping[tuple[str, int], float]) -> AdapterTraces:
    """How the layers of `model` compute now.

    Args:
        model: A client model.
        begun: `read_scalings` of what was active as the session began.

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
    now = read_scalings(model, *active)
    scales = {_ratio(now[place], begun[place]) for place in now.keys() & begun.keys()}
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


class ValueWatch:
    """Notices when adapter tensors are changed by anyone but those who have the trunk follow.

    By their values: what is written to `parameter.data`, as averages of weights and optimizers
    outside of torch do, leaves no trace in a tensor's version.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] | None = None

    def note(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors` as they are."""
        self._seen = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def changed(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of those that were changed, or are others, since they were noted."""
        if self._seen is None:
            self.note(tensors)
            return []
        seen = self._seen
        apart = {
            name
            for name in tensors.keys() & seen.keys()
            if (tensors[name].shape, tensors[name].dtype, tensors[name].device)
            != (seen[name].shape, seen[name].dtype, seen[name].device)
        }
        found = (tensors.keys() ^ seen.keys()) | apart
        held = {name for name in tensors.keys() & seen.keys() if not seen[name].is_meta}
        both = sorted(held - apart)
        if both:
            # One look at all of them; what is no number shows by itself.
            changes = torch._foreach_sub(
                [tensors[name].detach() for name in both], [seen[name] for name in both]
            )
            largest = torch.stack(_largest(changes))
            found |= {both[int(i)] for i in torch.nonzero(largest.nan_to_num(0.0)).flatten()}
        return sorted(found)


def _largest(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The magnitude of the largest element of each; few transfers, whatever the devices."""
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    found: dict[int, Tensor] = {}
    for indices in by_device.values():
        norms = torch._foreach_norm([tensors[i] for i in indices], math.inf)
        found |= dict(zip(indices, torch.stack([n.float() for n in norms]).cpu(), strict=True))
    return [found[index] for index in range(len(tensors))]


def check_held(names: Sequence[str], modules: Collection[str]) -> None:
    """Raise `WireError` unless `names` are of adapter tensors on `modules` of the trunk.

    Else a trunk could put its tensors in the places of the silo's, in what the silo saves.
    """
    strange = [
        name
        for name in names
        if not name.startswith(PEFT_PREFIX)
        or not _owners(name.removeprefix(PEFT_PREFIX)) & set(modules)
    ]
    if strange or len(set(names)) != len(names):
        raise WireError(
            "the trunk tells of adapter tensors that are not in its part of the session's plan"
            + (f", such as {strange[0][:80]!r}" if strange else "")
        )


def _owners(name: str) -> set[str]:
    """The names of the modules that a tensor of that name may be in."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def adapters_of(layer: BaseTunerLayer) -> set[str]:
    """The adapters that a layer has tensors of."""
    return {key for part in layer.adapter_layer_names for key in getattr(layer, part, {})}


def told(layer: BaseTunerLayer, *, besides: str) -> tuple[Any, ...]:
    """Adapters, active ones, disabling, merging and scales of a layer, without `besides`."""
    scales = layer.scaling if isinstance(layer, LoraLayer) else {}
    return (
        adapters_of(layer) - {besides},
        [name for name in layer.active_adapters if name != besides],
        layer.disable_adapters,
        list(layer.merged_adapters),
        {name: value for name, value in scales.items() if name != besides},
    )


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
