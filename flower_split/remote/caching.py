"""The silo's half of a key-value cache that spans both parties.

The trunk keeps the keys of its layers. The silo's cache holds stand-ins for them, and every change
that `generate()` makes to it (reordering beams, cropping) travels with the next request.
"""

import itertools
import weakref
from dataclasses import dataclass, field

from transformers.cache_utils import Cache

from flower_split.errors import ModelError
from flower_split.segments.cache import EditKind, StandIn, place_stand_ins
from flower_split.transport.base import Transport
from flower_split.transport.messages import CacheEdit, CacheUse


@dataclass(kw_only=True)
class _Entry:
    cache_id: int
    stand_ins: list[StandIn] = field(default_factory=list)
    edits: list[CacheEdit] = field(default_factory=list)
    kept: bool = False


class CacheLedger:
    """Which caches of the silo have their other half at the trunk.

    Args:
        trunk_layers: Indices of the trunk's layers.
    """

    def __init__(self, trunk_layers: range) -> None:
        self._layers = trunk_layers
        self._numbers = itertools.count()
        self._entries: weakref.WeakKeyDictionary[Cache, _Entry] = weakref.WeakKeyDictionary()
        self._dead: list[int] = []

    def use(self, cache: Cache, tokens: int, *, kept: bool) -> CacheUse:
        """Count `tokens` more in `cache`, and say what the trunk must know of it.

        Args:
            cache: The silo's cache, as the stock model passes it to its layers.
            tokens: New tokens a row.
            kept: Whether the trunk shall keep keys: no for a pass with gradients, whose cache the
                stock model makes by default and nobody reads.

        Raises:
            ModelError: the cache has tokens whose keys the trunk did not keep.
        """
        entry = self._entries.get(cache) or self._register(cache)
        past = entry.stand_ins[0].get_seq_length()
        if past and not (entry.kept and kept):
            raise ModelError(
                f"the key-value cache already has {past} tokens: a split model makes no gradients "
                "through a filled cache. Train without past_key_values, and generate under "
                "torch.no_grad()"
            )
        for layer in entry.stand_ins:
            layer.advance(tokens)
        entry.kept = kept
        edits = tuple(entry.edits)
        entry.edits.clear()
        return CacheUse(cache_id=entry.cache_id, past_length=past, edits=edits)

    def drop_dead(self, transport: Transport) -> None:
        """Tell the trunk to free what belongs to caches that are gone."""
        while self._dead:
            transport.drop_cache(self._dead.pop())

    def _register(self, cache: Cache) -> _Entry:
        entry = _Entry(cache_id=next(self._numbers))
        edits = entry.edits

        def on_edit(kind: EditKind, values: tuple[int, ...]) -> None:
            edits.append(CacheEdit(kind=kind, values=values))

        entry.stand_ins = place_stand_ins(cache, self._layers, on_edit)
        self._entries[cache] = entry
        weakref.finalize(cache, self._dead.append, entry.cache_id)
        return entry
