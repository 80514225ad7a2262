"""Joining a client model and its trunk again, in one process and one autograd graph."""

import weakref
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from flower_split.errors import ModelError
from flower_split.segments.cache import StandIn, place_stand_ins
from flower_split.segments.layers import find_layers
from flower_split.segments.pass_through import TrunkPlace, TrunkSlot, refuse_copy, watch_calls
from flower_split.segments.trunk import Trunk


def join(client_model: PreTrainedModel, trunk: Trunk) -> None:
    """Make `client_model` compute its missing layers by calling `trunk` directly.

    Nothing crosses a wire and nothing is cut out of the graph: this is the reference by which the
    segments are checked.

    Raises:
        ModelError: the model has no place for this trunk.
    """
    _, layers = find_layers(client_model)
    slot = layers[trunk.cuts.bottom_layers]
    if not isinstance(slot, TrunkSlot) or slot.cuts != trunk.cuts:
        raise ModelError(
            f"the client model has no slot for a trunk with {trunk.cuts}; cut both at once with "
            "split_model"
        )
    joined = JoinedTrunk(slot, trunk)
    layers[trunk.cuts.bottom_layers] = joined
    watch_calls(client_model, slot.family, joined.called_with)


class JoinedTrunk(TrunkPlace):
    """Stands in the trunk's slot and calls the trunk.

    For every key-value cache of the client it keeps one for the trunk, also where nobody reads
    it: stock code without a mask and a cache takes positions that start anew for packed documents.
    """

    def __init__(self, slot: TrunkSlot, trunk: Trunk) -> None:
        super().__init__(slot, family=slot.family, cuts=slot.cuts, fingerprint=slot.fingerprint)
        # In a tuple, so that the trunk's parameters do not become the client model's.
        self._trunk = (trunk,)
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None
        self._caches: weakref.WeakKeyDictionary[Cache, tuple[DynamicCache, list[StandIn]]] = (
            weakref.WeakKeyDictionary()
        )

    __deepcopy__ = refuse_copy
    __reduce_ex__ = refuse_copy

    def called_with(self, attention_mask: Any, position_ids: Any) -> None:
        """Note what the client model was called with."""
        self._mask, self._positions = attention_mask, position_ids

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """h2 for h1, both (B, T, H), as the stock model's loop expects a layer's answer."""
        cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
        own: DynamicCache | None = None
        stand_ins: list[StandIn] = []
        if cache is not None:
            own, stand_ins = self._cache_for(cache)
        output = self._trunk[0](
            hidden_states,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=own,
        )
        for layer in stand_ins:
            layer.advance(hidden_states.shape[1])
        return super().forward(output, *args, **kwargs)

    def _cache_for(self, cache: Cache) -> tuple[DynamicCache, list[StandIn]]:
        if cache not in self._caches:
            cuts = self._trunk[0].cuts
            own = DynamicCache(config=self._trunk[0].config)
            stand_ins = [
                *place_stand_ins(cache, cuts.trunk_range),
                *place_stand_ins(own, cuts.bottom_range),
                *place_stand_ins(own, cuts.top_range),
            ]
            self._caches[cache] = own, stand_ins
        return self._caches[cache]
