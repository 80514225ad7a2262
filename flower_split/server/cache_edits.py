"""What several edits make of a key-value cache: found and bounded first, then made at one go.

However many edits a request brings, each layer's keys are copied once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from flower_split.errors import SequenceError, TrunkBusyError, WireError
from flower_split.transport.messages import CacheEdit

_MOST_REPEATS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheChange:
    """What edits make of a cache of rows x tokens."""

    rows: int
    """Of the cache after it."""
    length: int
    """Tokens a row after it."""
    order: Tensor | None = None
    """Which of the rows before are the rows after, (rows,) of int64; None for all as they are."""
    chosen: bool = False
    """Whether rows were repeated or selected, and not only put in another order."""
    cropped: int = 0
    """Tokens to forget at the end of every row."""
    reset: bool = False
    """Whether everything is forgotten."""

    def make(self, keys: DynamicCache) -> None:
        """Change `keys` so.

        Raises:
            SequenceError: a sliding window would have to be cropped that is full.
        """
        if self.reset:
            keys.reset()
        if self.cropped:
            try:
                keys.crop(-self.cropped)
            except RuntimeError as error:
                raise SequenceError(
                    "a sliding-window cache that is full cannot be cropped: generate without "
                    "assisted decoding"
                ) from error
        if self.order is not None and self.chosen:
            keys.batch_select_indices(self.order)
        elif self.order is not None:
            keys.reorder_cache(cast("torch.LongTensor", self.order))


def change_of(edits: Sequence[CacheEdit], rows: int, length: int, room: int) -> CacheChange:
    """What `edits`, one after the other, make of a cache; nothing that large is made for it.

    Args:
        edits: Of one request.
        rows: Of the cache before them.
        length: Tokens a row before them.
        room: Bound of rows x tokens after each of them.

    Raises:
        WireError: an edit does not fit the cache as it is then.
        TrunkBusyError: the cache would be larger than `room` after one of them.
    """
    order = torch.arange(rows)
    moved = chosen = reset = False
    cropped = 0
    for edit in edits:
        match edit.kind, edit.values:
            case "reorder" | "select" as kind, values if values and (
                kind == "select" or len(values) == rows
            ):
                _check_room(len(values), length, room)
                index = torch.tensor(values)
                if int(index.min()) < 0 or int(index.max()) >= rows:
                    raise _unfit(edit, rows, length)
                order, rows = order[index], len(values)
                moved, chosen = True, chosen or kind == "select"
            case "repeat", (times,) if 1 <= times <= _MOST_REPEATS:
                _check_room(rows * times, length, room)
                order, rows = order.repeat_interleave(times), rows * times
                moved = chosen = True
            case "crop", (tokens,) if 0 <= tokens <= length:
                length -= tokens
                cropped += tokens
            case "reset", ():
                length = cropped = 0
                reset = True
            case _:
                raise _unfit(edit, rows, length)
    return CacheChange(
        rows=rows,
        length=length,
        order=order if moved and length else None,
        chosen=chosen,
        cropped=cropped,
        reset=reset,
    )


def _check_room(rows: int, length: int, room: int) -> None:
    wanted = rows * max(1, length)
    if wanted > room:
        raise TrunkBusyError(
            f"a cache edit to {rows} rows of {length} tokens; the trunk has room for {room} more "
            "tokens of this session. Generate fewer rows or shorter texts, or raise "
            "trunk.max-cached-tokens"
        )


def _unfit(edit: CacheEdit, rows: int, length: int) -> WireError:
    return WireError(
        f"cache edit {edit.kind!r} with {len(edit.values)} values does not fit a cache of {rows} "
        f"rows and {length} tokens"
    )
