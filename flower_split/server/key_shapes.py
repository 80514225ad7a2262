"""The shape of the keys and values that a trunk's layers keep, as they keep them."""

import weakref

import torch
from transformers.cache_utils import DynamicLayer

from flower_split.segments import Trunk
from flower_split.segments.prefix import empty_cache

_FOUND: weakref.WeakKeyDictionary[Trunk, tuple[int, int]] = weakref.WeakKeyDictionary()


def key_shape(trunk: Trunk) -> tuple[int, int]:
    """Heads and head size of keys and values, the same in every layer of the trunk.

    It is read off a pass over one token, once for a trunk. To be called where the trunk computes.

    Raises:
        ValueError: the layers differ, keep something else, or nothing.
    """
    if trunk not in _FOUND:
        cache = empty_cache(trunk.config)
        hidden = torch.zeros(1, 1, trunk.hidden_size, dtype=trunk.dtype, device=trunk.device)
        trunk.eval()  # every pass has a mode of its own
        try:
            with torch.no_grad(), trunk.without_adapter():
                trunk(hidden, past_key_values=cache)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__} in a pass with an empty cache") from error
        layers = [cache.layers[index] for index in trunk.cuts.trunk_range]
        shapes = {
            tuple(part.shape) if isinstance(layer, DynamicLayer) and part is not None else ()
            for layer in layers
            for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
        }
        if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[0] != 1 or shape[2] != 1:
            raise ValueError("they keep no keys and values of one shape")
        _FOUND[trunk] = shape[1], shape[3]
    return _FOUND[trunk]
