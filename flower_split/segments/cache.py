"""Key-value cache layers that stand for the layers of another party.

A stock model reads its position and its mask sizes from its cache, often from layer 0 or from the
first layer of a kind, whether or not it holds that layer. A stand-in answers those questions and
stores no keys.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from flower_split.errors import ModelError

EditKind = Literal["reorder", "crop", "repeat", "select", "reset"]
OnEdit = Callable[[EditKind, tuple[int, ...]], None]


class StandIn(DynamicLayer):
    """Stands for a layer with full attention: knows how many tokens it has seen.

    Args:
        length: Tokens that the layer has seen.
        on_edit: Called with every change that `generate()` makes to the cache between two
            forward passes.
    """

    def __init__(self, length: int = 0, on_edit: OnEdit | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cumulative_length = length
        self._on_edit = on_edit

    def advance(self, tokens: int) -> None:
        """Count `tokens` more."""
        self.cumulative_length += tokens

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Refused: the layer is not here."""
        raise ModelError("keys and values of a layer that another party holds cannot be cached")

    def get_seq_length(self) -> int:
        """Tokens that the layer has seen."""
        return int(self.cumulative_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Report that rows `beam_idx` replace the rows."""
        self._edited("reorder", tuple(beam_idx.tolist()))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        if tokens_to_remove > 0:
            raise ModelError(
                f"crop takes the number of tokens to remove as a negative number, not "
                f"{tokens_to_remove}"
            )
        self.cumulative_length = max(0, self.cumulative_length + tokens_to_remove)
        self._edited("crop", (-tokens_to_remove,))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Report that every row is repeated."""
        self._edited("repeat", (repeats,))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Report that only the rows `indices` stay."""
        self._edited("select", tuple(indices.tolist()))

    def reset(self) -> None:
        """Start again with no token seen, and report it."""
        self.cumulative_length = 0
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

    def _edited(self, kind: EditKind, values: tuple[int, ...]) -> None:
        if self._on_edit is not None:
            self._on_edit(kind, values)


class SlidingStandIn(StandIn, DynamicSlidingWindowLayer):
    """Stands for a layer with sliding-window attention: mask sizes stop at the window."""

    def __init__(self, window: int, length: int = 0, on_edit: OnEdit | None = None) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=window)
        self.cumulative_length = length
        self._on_edit = on_edit

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset, as a sliding-window layer has them."""
        return DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)

    def get_max_length(self) -> int:
        """Tokens that the attention window spans."""
        return self.sliding_window


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
    for index in absent:
        layer = cache.layers[index]
        if isinstance(layer, StandIn):
            continue
        if not isinstance(layer, DynamicLayer) or layer.get_seq_length() > 0:
            raise ModelError(
                f"cache layer {index} is a {type(layer).__name__} that is in use or of another "
                "kind; a split model needs a new DynamicCache"
            )
        report = on_edit if index == absent.start else None
        cache.layers[index] = (
            SlidingStandIn(layer.sliding_window, on_edit=report)
            if isinstance(layer, DynamicSlidingWindowLayer)
            else StandIn(on_edit=report)
        )
    return [layer for i in absent if isinstance(layer := cache.layers[i], StandIn)]
