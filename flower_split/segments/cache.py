"""Key-value cache layers that stand for the layers of another party.

A stock model reads its position and its mask sizes from its cache, often from layer 0 or from the
first layer of a kind, whether or not it holds that layer. A stand-in answers those questions and
stores no keys.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from flower_split.errors import ModelError

EditKind = Literal["reorder", "crop", "repeat", "select", "reset"]
OnEdit = Callable[[EditKind, tuple[int, ...]], None]


class StandIn:
    """Stands for a layer of a cache: knows how many tokens it has seen.

    Made by `place_stand_ins`, for which it is combined with the class of the layer that it stands
    for. So it tells mask sizes as that one does, a window's bound among them, and the stock code
    takes it for attention or for linear attention as it takes that one.
    """

    cumulative_length: int
    _on_edit: OnEdit | None

    def advance(self, tokens: int) -> None:
        """Count `tokens` more."""
        self.cumulative_length += tokens
        if isinstance(self, LinearAttentionCacheLayerMixin):
            self.has_previous_state = dict.fromkeys(self.has_previous_state, True)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the layer is not here."""
        raise ModelError("keys and values of a layer that another party holds cannot be cached")

    update_indexer = update_conv_state = update_recurrent_state = update

    def get_seq_length(self) -> int:
        """Tokens that the layer has seen."""
        return int(self.cumulative_length)

    def activate_past_recording(self) -> None:
        """Nothing for keys, which stay; refused for linear attention, see `crop`."""
        self._refuse_for_states("rolled back", "generate without assisted decoding")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Report that rows `beam_idx` replace the rows."""
        self._edited("reorder", tuple(beam_idx.tolist()))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        self.activate_past_recording()
        if tokens_to_remove > 0:
            raise ModelError(
                f"crop takes the number of tokens to remove as a negative number, not "
                f"{tokens_to_remove}"
            )
        self.cumulative_length = max(0, self.cumulative_length + tokens_to_remove)
        self._edited("crop", (-tokens_to_remove,))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Report that every row is repeated."""
        self._refuse_for_states("repeated or selected", "generate by sampling or beams")
        self._edited("repeat", (repeats,))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Report that only the rows `indices` stay."""
        self._refuse_for_states("repeated or selected", "generate by sampling or beams")
        self._edited("select", tuple(indices.tolist()))

    def reset(self) -> None:
        """Start again with no token seen, and report it."""
        self.cumulative_length = 0
        if isinstance(self, LinearAttentionCacheLayerMixin):
            self.has_previous_state = dict.fromkeys(self.has_previous_state, False)
        self._edited("reset", ())

    @property
    def on_edit(self) -> OnEdit | None:
        """Who is told of changes."""
        return self._on_edit

    def report_to(self, on_edit: OnEdit) -> None:
        """Tell `on_edit` of every change from now on."""
        self._on_edit = on_edit

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        """The stand-in in a copy of the cache; who is told of its changes has a say in that."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        copied = getattr(self._on_edit, "copied", None)
        made._on_edit = None if copied is None else copied()
        return made

    def __reduce__(self) -> Any:
        """Its class is made anew where it is read."""
        return _remade, (type(self).__mro__[2], dict(vars(self)))

    def _refuse_for_states(self, what: str, instead: str) -> None:
        if isinstance(self, LinearAttentionCacheLayerMixin):
            raise ModelError(f"linear-attention states cannot be {what}: {instead}")

    def _edited(self, kind: EditKind, values: tuple[int, ...]) -> None:
        if self._on_edit is not None:
            self._on_edit(kind, values)


CacheLayer = DynamicLayer | LinearAttentionCacheLayerMixin | DummyLayer


def place_stand_ins(cache: Cache, absent: range, on_edit: OnEdit | None = None) -> list[StandIn]:
    """Put stand-ins for the layers `absent` into `cache` and return them; placed ones are kept.

    Only the first reports to `on_edit`.

    Raises:
        ModelError: the cache is not a plain `DynamicCache`, or a layer already holds keys.
    """
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise ModelError(
            f"a split model generates with a plain DynamicCache, not {type(cache).__name__}; "
            "leave cache_implementation unset"
        )
    while len(cache.layers) < absent.stop:
        cache.layers.append(DynamicLayer())
    placed: list[StandIn] = []
    for index in absent:
        layer: Any = cache.layers[index]
        if not isinstance(layer, StandIn):
            if not isinstance(layer, CacheLayer) or _in_use(layer):
                raise ModelError(
                    f"cache layer {index} is a {type(layer).__name__} that is in use or of "
                    "another kind; a split model needs a new DynamicCache, and with prefix tuning "
                    "a session that was opened after the model was wrapped"
                )
            layer = _stand_in(layer, on_edit if index == absent.start else None)
            cache.layers[index] = layer
        placed.append(layer)
    return placed


def _in_use(layer: CacheLayer) -> bool:
    seen = isinstance(layer, DynamicLayer) and layer.get_seq_length() > 0
    return seen or (
        isinstance(layer, LinearAttentionCacheLayerMixin) and any(layer.has_previous_state.values())
    )


def _stand_in(layer: CacheLayer, on_edit: OnEdit | None) -> StandIn:
    made = object.__new__(_stand_in_class(type(layer)))
    vars(made).update(vars(layer), cumulative_length=0, _on_edit=on_edit)
    return made


def _remade(of: Any, values: dict[str, Any]) -> StandIn:
    made = object.__new__(_stand_in_class(of))
    vars(made).update(values)
    return made


_CLASSES: dict[Any, type[StandIn]] = {}


def _stand_in_class(of: Any) -> type[StandIn]:
    if of not in _CLASSES:
        # Without a layer type: transformers makes caches of the last class that has claimed one.
        members = {"_layer_type": None}
        _CLASSES[of] = cast(type[StandIn], type(f"{of.__name__}StandIn", (StandIn, of), members))
    return _CLASSES[of]
