"""Several edits of a cache make what they make one after the other, in bounds told beforehand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from flower_split.errors import TrunkBusyError, WireError
from flower_split.server.cache_edits import change_of
from flower_split.transport.messages import CacheEdit

ROOM = 64


def filled(rows: int, length: int) -> DynamicCache:
    cache = DynamicCache()
    generator = torch.Generator().manual_seed(rows)
    for layer in range(2):
        keys, values = torch.randn(2, rows, 3, length, 4, generator=generator)
        cache.update(keys, values, layer)
    return cache


def one_by_one(cache: DynamicCache, edits: list[CacheEdit]) -> None:
    for edit in edits:
        match edit.kind:
            case "reorder":
                cache.reorder_cache(torch.tensor(edit.values))
            case "select":
                cache.batch_select_indices(torch.tensor(edit.values))
            case "repeat":
                cache.batch_repeat_interleave(edit.values[0])
            case _:
                cache.crop(-edit.values[0])


@given(st.data())
def test_at_one_go_as_one_by_one(data: st.DataObject) -> None:
    rows, length = before = 3, 6
    edits = []
    for kind in data.draw(st.lists(st.sampled_from(["reorder", "select", "repeat", "crop"]))):
        drawn = (0,)
        if kind in ("reorder", "select"):
            size = rows if kind == "reorder" else data.draw(st.integers(1, ROOM // 6))
            drawn = tuple(
                data.draw(st.lists(st.integers(0, rows - 1), min_size=size, max_size=size))
            )
            rows = size
        elif kind == "repeat" and rows * 2 * 6 <= ROOM:
            drawn, rows = (2,), rows * 2
        elif kind == "repeat":
            drawn = (1,)
        elif length > 1:
            drawn, length = (1,), length - 1
        edits.append(CacheEdit(kind=kind, values=drawn))
    expected, got = filled(*before), filled(*before)
    one_by_one(expected, edits)
    change = change_of(edits, *before, ROOM)
    change.make(got)
    assert (change.rows, change.length) == (rows, length)
    for layer, other in zip(got.layers, expected.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


def test_a_reset_forgets_what_was_before() -> None:
    edits = [
        CacheEdit(kind="repeat", values=(2,)),
        CacheEdit(kind="crop", values=(1,)),
        CacheEdit(kind="reset"),
    ]
    change = change_of(edits, 3, 6, ROOM)
    assert (change.length, change.cropped, change.order) == (0, 0, None)


@pytest.mark.parametrize(
    "edits",
    [
        [CacheEdit(kind="select", values=(0,) * 600_000)],
        [CacheEdit(kind="repeat", values=(1024,))],
        [CacheEdit(kind="repeat", values=(2,))] * 60 + [CacheEdit(kind="select", values=(0,))],
        [CacheEdit(kind="reset"), CacheEdit(kind="repeat", values=(1000,))],
    ],
    ids=["a long selection", "a large repeat", "many repeats", "of an empty cache"],
)
def test_more_rows_than_there_is_room_for_are_refused(edits: list[CacheEdit]) -> None:
    with pytest.raises(TrunkBusyError, match=r"room for 64 .* trunk.max-cached-tokens"):
        change_of(edits, 3, 6, ROOM)


@pytest.mark.parametrize(
    "edit",
    [
        CacheEdit(kind="reorder", values=(0, 1)),
        CacheEdit(kind="reorder", values=(0, 1, 3)),
        CacheEdit(kind="select", values=(-1,)),
        CacheEdit(kind="select"),
        CacheEdit(kind="crop", values=(7,)),
        CacheEdit(kind="crop", values=(-1,)),
        CacheEdit(kind="repeat", values=(0,)),
        CacheEdit(kind="reset", values=(1,)),
    ],
)
def test_an_edit_that_does_not_fit_the_cache_as_it_is_then_is_refused(edit: CacheEdit) -> None:
    with pytest.raises(WireError, match="does not fit a cache of 3 rows and 5 tokens"):
        change_of([CacheEdit(kind="crop", values=(1,)), edit], 3, 6, ROOM)
