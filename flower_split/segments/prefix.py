"""Prefixes: keys and values that every layer's cache begins with, and that are trained.

The silo has those of all layers, because PEFT's encoder makes them at once. Those of the trunk's
layers are taken out of the silo's cache and go to the trunk as one tensor, whose gradient comes
back.

Axes: L layers of the trunk, B rows, V tokens of the prefix, W heads x head size.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from flower_split.errors import ModelError
from flower_split.segments.cache import StandIn, place_stand_ins

KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""Of one layer after the other, each (B, heads, V, head size)."""

_WITH_WINDOWS = ("gemma2", "gemma3_text", "gemma4")


def empty_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that PEFT puts a prefix into: with the model's windows for some families, and
    for all others without, so that every layer sees all of it."""
    if any(name in config.model_type for name in _WITH_WINDOWS):
        return DynamicCache(config=config)
    cache = DynamicCache()
    cache.layers.extend(DynamicLayer() for _ in range(int(config.num_hidden_layers)))
    return cache


def find_prefix(cache: Cache | None, layers: range, model: PreTrainedModel) -> Tensor | None:
    """What somebody has put into the cache for `layers`, which another party holds; None for
    nothing. See `take_prefix`."""
    if not isinstance(cache, DynamicCache) or not _length(cache, layers):
        return None
    _refuse_checkpointing(model)
    return take_prefix(cache, layers, model.config)


def _refuse_checkpointing(model: PreTrainedModel) -> None:
    if model.training and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ModelError(
            "prefix tuning does not work with gradient checkpointing, which gives layers no cache, "
            "and so no prefix: turn it off, or use prompt tuning"
        )


def _length(cache: DynamicCache, layers: range) -> int:
    whole: list[Any] = cache.layers
    held = whole[layers.start : layers.stop]
    if any(isinstance(layer, StandIn) for layer in held):
        return 0
    return max((int(layer.get_seq_length()) for layer in held), default=0)


def take_prefix(cache: DynamicCache, layers: range, config: PreTrainedConfig) -> Tensor:
    """The prefix of `layers`, (2 L R, V, W), with its graph; stand-ins of its length replace it.

    R is 1 where the prefix is the same for all rows, and B else.

    Raises:
        ModelError: the layers' prefixes differ in shape, or are kept in another way than the trunk
            would.
    """
    held: list[Any] = cache.layers[layers.start : layers.stop]
    alike = empty_cache(config).layers
    tensors: list[Tensor] = []
    for index, layer in zip(layers, held, strict=False):
        whole = isinstance(layer, DynamicLayer) and type(layer) is type(alike[index])
        if not whole or layer.keys is None or layer.get_seq_length() != layer.keys.shape[2]:
            raise ModelError(
                f"layer {index} keeps a prefix of {layer.get_seq_length()} tokens as a "
                f"{type(layer).__name__}, which the trunk cannot be given: use fewer "
                "virtual tokens than a sliding window has, or prompt tuning"
            )
        tensors += [layer.keys, layer.values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(held) != len(layers) or len(shapes) != 1:
        raise ModelError(
            f"the prefix has keys and values of {len(shapes)} shapes in {len(held)} of the trunk's "
            f"{len(layers)} layers, which the trunk cannot be given: use prompt tuning"
        )
    ((_, _, length, _),) = shapes
    for index in layers:
        cache.layers[index] = alike[index]
    for stand_in in place_stand_ins(cache, layers):
        stand_in.advance(length)
    return pack(tensors)


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, heads, V, head size) as one, (2 L R, V, W)."""
    whole = torch.stack([*tensors])
    if bool((whole == whole[:, :1]).all()):
        whole = whole[:, :1]
    count, rows, heads, length, size = whole.shape
    return whole.transpose(2, 3).reshape(count * rows, length, heads * size)


def unpack(prefix: Tensor, rows: int, heads: int, layers: int) -> KeysAndValues:
    """What `pack` was given, for a batch of `rows`."""
    length, width = prefix.shape[1:]
    whole = prefix.reshape(2 * layers, -1, length, heads, width // heads).transpose(2, 3)
    whole = whole.expand(-1, rows, -1, -1, -1)
    return [(whole[2 * index], whole[2 * index + 1]) for index in range(layers)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """What a pass in two halves has of its prefix."""

    trunk: Tensor
    """For the trunk's layers, (2 L R, V, W), with its graph."""
    cache: DynamicCache
    """What the second half begins with: leaves for the keys and values of its layers."""
    sources: tuple[Tensor, ...]
    """Keys and values of the second half's layers, with their graph."""
    leaves: tuple[Tensor, ...]
    """What stands for them in `cache`."""

    def reached(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those of `sources` that a backward pass of the second half has reached, and the
        gradients there."""
        pairs = zip(self.sources, self.leaves, strict=True)
        found = [(source, leaf.grad) for source, leaf in pairs if leaf.grad is not None]
        return [source for source, _ in found], [grad for _, grad in found if grad is not None]


def split_prefix(cache: Cache, layers: range, model: PreTrainedModel) -> Prefix | None:
    """The prefix in `cache`, which then is the first half's; None where there is none.

    Args:
        cache: As the stock model is called with it.
        layers: Those of the trunk.
        model: The stock model that is called.

    Raises:
        ModelError: see `take_prefix`; or the model's layers are checkpointed.
    """
    if not isinstance(cache, DynamicCache) or not _length(cache, layers):
        return None
    _refuse_checkpointing(model)
    second = copy.copy(cache)
    second.layers = []
    sources: list[Tensor] = []
    leaves: list[Tensor] = []
    held: list[Any] = cache.layers
    for index, layer in enumerate(held):
        twin = copy.copy(layer)
        twin.keys, twin.values = map(_leaf, (layer.keys, layer.values))
        if index >= layers.stop and twin.keys.requires_grad:
            sources += [layer.keys, layer.values]
            leaves += [twin.keys, twin.values]
        second.layers.append(twin)
    return Prefix(
        trunk=take_prefix(cache, layers, model.config),
        cache=second,
        sources=tuple(sources),
        leaves=tuple(leaves),
    )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
