"""The trunk's key-value caches of one session, bounded in rows x tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import DynamicCache

from flower_split.errors import SequenceError, TrunkBusyError
from flower_split.segments import Trunk
from flower_split.segments.cache import StandIn, place_stand_ins
from flower_split.segments.prefix import empty_cache, unpack
from flower_split.server.cache_edits import change_of
from flower_split.server.key_shapes import key_shape
from flower_split.transport.messages import CacheEdit, CacheUse


@dataclass(kw_only=True)
class TrunkCache:
    """One cache: keys and values of the trunk's layers, stand-ins for the silo's."""

    keys: DynamicCache
    stand_ins: list[StandIn]
    rows: int
    length: int = 0

    def advance(self, tokens: int) -> None:
        """Count `tokens` that a forward pass has added."""
        self.length += tokens
        for layer in self.stand_ins:
            layer.advance(tokens)

    def edit(self, edits: Sequence[CacheEdit], room: int) -> None:
        """Make the changes that `generate()` made to the silo's cache.

        Args:
            edits: One after the other.
            room: Bound of rows x tokens after each of them.

        Raises:
            SequenceError: a sliding window would have to be cropped that is full.
            WireError: a change does not fit the cache.
            TrunkBusyError: the cache would be larger than `room`.
        """
        change = change_of(edits, self.rows, self.length, room)
        change.make(self.keys)
        self.rows, self.length = change.rows, change.length


class SessionCaches:
    """All caches of one session.

    Args:
        trunk: Whose layers the caches are for.
        max_tokens: Bound of rows x tokens over all of them.
    """

    def __init__(self, trunk: Trunk, max_tokens: int) -> None:
        self._trunk = trunk
        self._max_tokens = max_tokens
        self._caches: dict[int, TrunkCache] = {}

    def use(
        self, use: CacheUse, rows: int, tokens: int, prefix: Tensor | None = None
    ) -> TrunkCache:
        """The cache for a forward pass over `rows` x `tokens`, brought up to date.

        Args:
            use: What the silo says of it.
            rows: Of the pass.
            tokens: Of the pass, in a row.
            prefix: What a new cache begins with, (2 L R, V, W).

        Raises:
            SequenceError: the cache does not hold what the silo thinks it holds.
            WireError: an edit does not fit.
            TrunkBusyError: the pass would exceed the bound.
        """
        cache = self._caches.get(use.cache_id)
        if prefix is not None:
            if cache is not None:
                raise SequenceError(f"cache {use.cache_id} is known: a prefix begins a new one")
            self._admit(rows, prefix.shape[1] + tokens, without=use.cache_id)
            cache = self._new_cache(rows, prefix)
        elif cache is None:
            if use.past_length or any(edit.kind != "reset" for edit in use.edits):
                raise SequenceError(
                    f"cache {use.cache_id} is not known and cannot hold {use.past_length} tokens"
                )
            cache = self._new_cache(rows)
        else:
            if use.edits:
                cache.edit(use.edits, self._max_tokens - self._others(use.cache_id))
        if cache.length == 0:
            cache.rows = rows
        if cache.length != use.past_length or cache.rows != rows:
            raise SequenceError(
                f"cache {use.cache_id} holds {cache.rows} rows of {cache.length} tokens; the "
                f"request expects {rows} rows of {use.past_length}"
            )
        self._admit(rows, cache.length + tokens, without=use.cache_id)
        self._caches[use.cache_id] = cache
        return cache

    def scratch(self, rows: int, prefix: Tensor | None = None) -> TrunkCache:
        """A cache for one pass with gradients, which nobody will extend.

        It begins with `prefix`, (2 L R, V, W), and its graph.

        The stock code takes restarting position ids for packed sequences only where it has no
        cache, so that the trunk must have one whenever the silo's model has.
        """
        return self._new_cache(rows, prefix)

    def drop(self, cache_id: int) -> None:
        """Free a cache; one that is not there is no error."""
        self._caches.pop(cache_id, None)

    def clear(self) -> None:
        """Free all caches."""
        self._caches.clear()

    def _admit(self, rows: int, length: int, without: int) -> None:
        wanted = self._others(without) + rows * length
        if wanted > self._max_tokens:
            raise TrunkBusyError(
                f"the session's key-value caches would hold {wanted} tokens; the trunk keeps at "
                f"most {self._max_tokens}. Generate fewer rows or shorter texts, or raise "
                "trunk.max-cached-tokens"
            )

    def _others(self, than: int) -> int:
        return sum(c.rows * c.length for i, c in self._caches.items() if i != than)

    def _new_cache(self, rows: int, prefix: Tensor | None = None) -> TrunkCache:
        cuts, config = self._trunk.cuts, self._trunk.config
        keys = DynamicCache(config=config) if prefix is None else empty_cache(config)
        bottom = range(cuts.bottom_layers)
        top = range(cuts.trunk_range.stop, cuts.num_layers)
        stand_ins = [*place_stand_ins(keys, bottom), *place_stand_ins(keys, top)]
        cache = TrunkCache(keys=keys, stand_ins=stand_ins, rows=rows)
        if prefix is not None:
            held = cuts.trunk_range
            heads = key_shape(self._trunk)[0]
            for index, (key, value) in zip(
                held, unpack(prefix, rows, heads, len(held)), strict=True
            ):
                keys.update(key, value, index)
            cache.advance(prefix.shape[1])
        return cache
