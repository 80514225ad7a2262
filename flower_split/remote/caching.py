"""The silo's half of a key-value cache that spans both parties.

The trunk keeps the keys of its layers. The silo's cache holds stand-ins for them, and every change
that `generate()` makes to it (reordering beams, cropping) travels with the next request.

A copy of a cache, such as of a prompt's that is used several times, shares the original's keys at
the trunk. Whichever of them is used next has the trunk forget what the others appended, which is
exact as long as what they have in common is still there.
"""

import itertools
import weakref
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from flower_split.errors import ModelError
from flower_split.segments.cache import EditKind, StandIn, place_stand_ins
from flower_split.transport.base import Transport
from flower_split.transport.bounds import MOST_EDITS
from flower_split.transport.messages import CacheEdit, CacheUse


class _Keys:
    """What the trunk keeps for one cache and its copies.

    Args:
        ledger: Of the session in which it is kept.
        cache_id: Its number there.
    """

    def __init__(self, ledger: "CacheLedger", cache_id: int) -> None:
        self.ledger = weakref.ref(ledger)
        self.cache_id = cache_id
        self.kept = False
        self.length = 0
        self.views: weakref.WeakSet[_View] = weakref.WeakSet()


class _View:
    """One cache of the silo: how much of the trunk's keys it has, and what has been done to it.

    As a callable it notes an edit of the cache's stand-ins.

    Args:
        keys: The trunk's.
    """

    def __init__(self, keys: _Keys) -> None:
        self.keys = keys
        self.length = 0
        """Tokens of the trunk's keys that it had when it was last used."""
        self.intact = 0
        """Leading tokens of these that no copy has changed since."""
        self.edits: list[CacheEdit] = []
        self.samples: dict[tuple[str, int], Tensor] = {}
        """One number a row, head and token of the silo's keys and values, by which of both and by
        layer, as they were last used."""
        keys.views.add(self)

    def __call__(self, kind: EditKind, values: tuple[int, ...]) -> None:
        self.edits.append(CacheEdit(kind=kind, values=values))

    def copied(self) -> "_View":
        """That of a copy of the cache."""
        copy = _View(self.keys)
        copy.length, copy.intact, copy.edits = self.length, self.intact, [*self.edits]
        copy.samples = {**self.samples}
        return copy

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ModelError(
            "the key-value cache of a split model cannot be pickled: the trunk has its other half"
        )

    def take_edits(self) -> tuple[CacheEdit, ...]:
        """What the trunk has to do to its keys before they are this cache's again.

        Raises:
            ModelError: more than a request may ask for.
        """
        beyond = self.keys.length - self.length
        edits = [CacheEdit(kind="crop", values=(beyond,))] if beyond else []
        edits += self.edits
        if len(edits) > MOST_EDITS:
            raise ModelError(
                f"the key-value cache was changed {len(edits)} times since it was last used; the "
                f"trunk follows at most {MOST_EDITS}: call the model between the changes"
            )
        self.edits.clear()
        return tuple(edits)

    def advance(self, past: int, tokens: int, edits: tuple[CacheEdit, ...]) -> None:
        """Note that a pass over `tokens` after `past` follows `edits`."""
        keys = self.keys
        moved = any(edit.kind != "crop" for edit in edits)
        for other in keys.views:
            if other is not self:
                other.intact = 0 if moved else min(other.intact, past)
        keys.length = self.length = self.intact = past + tokens


class CacheLedger:
    """Which caches of the silo have their other half at the trunk.

    Args:
        trunk_layers: Indices of the trunk's layers.
    """

    def __init__(self, trunk_layers: range) -> None:
        self._layers = trunk_layers
        self._numbers = itertools.count()
        self._dead: list[int] = []

    def use(
        self, cache: Cache, tokens: int, *, kept: bool, begins: bool = False
    ) -> CacheUse | None:
        """Count `tokens` more in `cache`, and say what the trunk must know of it; None for nothing.

        Args:
            cache: The silo's cache, as the stock model passes it to its layers.
            tokens: New tokens a row.
            begins: Whether what the cache has is a prefix that goes to the trunk with this pass.
            kept: Whether the trunk shall keep keys: no for a pass with gradients, whose cache the
                stock model makes by default and nobody reads.

        Raises:
            ModelError: the cache has tokens whose keys the trunk did not keep.
        """
        view, stand_ins = self._find(cache)
        past = stand_ins[0].get_seq_length()
        self._check_own(cache, view, past, tokens)
        if past and not begins:
            self._check_past(view, stand_ins, past, kept=kept)
        edits = view.take_edits()
        for layer in stand_ins:
            layer.advance(tokens)
        view.advance(past, tokens, edits)
        view.keys.kept = kept
        if begins and not kept:
            return None  # nobody will extend it
        return CacheUse(cache_id=view.keys.cache_id, past_length=past, edits=edits)

    def drop_dead(self, transport: Transport) -> None:
        """Tell the trunk to free what belongs to caches that are gone."""
        while self._dead:
            transport.drop_cache(self._dead.pop())

    def _find(self, cache: Cache) -> tuple[_View, list[StandIn]]:
        stand_ins = place_stand_ins(cache, self._layers)
        first = stand_ins[0]
        view = first.on_edit
        known = isinstance(view, _View) and view.keys.ledger() is self
        if not isinstance(view, _View) or (
            first.get_seq_length() == 0 and not (known and view.length == view.keys.length)
        ):
            view = self._begin()
            first.report_to(view)
        return view, stand_ins

    def _check_own(self, cache: Cache, view: _View, past: int, tokens: int) -> None:
        """Raise `ModelError` where the silo's keys are not those that the trunk's belong to."""
        held: dict[int, Any] = {
            index: layer
            for index, layer in enumerate(cache.layers)
            if isinstance(layer, DynamicLayer) and not isinstance(layer, StandIn)
        }
        for index, layer in held.items():
            expected = past + (tokens if index < self._layers.start else 0)
            if (found := layer.get_seq_length()) not in (0, expected):
                raise ModelError(
                    f"layer {index} of the key-value cache has {found} tokens with this pass, and "
                    f"the trunk's have {past} without it: {_OWN_HANDS}"
                )
        now: dict[tuple[str, int], Tensor] = {}
        for index, layer in held.items():
            for kind in ("keys", "values") if type(layer) is DynamicLayer else ():
                tensor = getattr(layer, kind)
                if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[-1]:
                    now[kind, index] = tensor[..., 0].detach()
        before, view.samples = view.samples, {place: now[place].clone() for place in now}
        both = before.keys() & now.keys()
        for kind in ("keys", "values") if not view.edits else ():
            places = [place for place in both if place[0] == kind]
            if places and not any(_begins_with(now[place], before[place]) for place in places):
                raise ModelError(
                    f"the {kind} in the key-value cache are others in all of the silo's layers "
                    f"than when it was last used, and the trunk's are not: {_OWN_HANDS}"
                )

    def _check_past(self, view: _View, stand_ins: list[StandIn], past: int, *, kept: bool) -> None:
        keys = view.keys
        if keys.ledger() is not self or not keys.length:
            raise ModelError(
                f"the key-value cache has {past} tokens of another session, whose trunk kept its "
                "keys: run the prompt again in this one"
            )
        if not (keys.kept and kept):
            raise ModelError(
                f"the key-value cache already has {past} tokens: a split model makes no gradients "
                "through a filled cache. Train without past_key_values, and generate under "
                "torch.no_grad()"
            )
        stale = view.intact < view.length
        if stale or (keys.length > view.length and not _can_crop(stand_ins, keys.length)):
            why = (
                "beam search, several answers a prompt or another copy has changed"
                if stale
                else "layers with a sliding window or linear attention do not go back to"
            )
            raise ModelError(
                f"the key-value cache has {past} tokens, which it shares with its copy at the "
                f"trunk; {why} what the two have in common. Run the prompt again for this one"
            )

    def _begin(self) -> _View:
        keys = _Keys(self, next(self._numbers))
        weakref.finalize(keys, self._dead.append, keys.cache_id)
        return _View(keys)


_OWN_HANDS = (
    "copy a cache with copy.deepcopy, change it by its own methods (reorder_cache, crop, "
    "batch_select_indices, batch_repeat_interleave, reset), and do not build one from the tensors "
    "of another"
)


def _begins_with(now: Tensor, before: Tensor) -> bool:
    """Whether samples, (rows, heads, tokens), are as they were, as far as both know them."""
    if now.shape[:2] != before.shape[:2]:
        return False
    common = min(now.shape[2], before.shape[2])
    a, b = now[..., :common], before[..., :common].to(now)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _can_crop(stand_ins: list[StandIn], length: int) -> bool:
    """Whether the layers that the stand-ins stand for forget their last tokens exactly."""
    return not any(
        isinstance(layer, LinearAttentionCacheLayerMixin)
        or (isinstance(layer, DynamicSlidingWindowLayer) and length >= layer.sliding_window)
        for layer in stand_ins
    )
