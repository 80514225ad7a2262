"""Holding out: disjoint, complete, never empty on either side."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.data import Examples, hold_out
from flower_split.data.held_out import limit
from flower_split.errors import DataError


def examples(length: int) -> Examples:
    return Examples.all_of([{"text": str(i)} for i in range(length)], origin="here")


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 80),
    fraction=st.floats(0.0, 0.9, exclude_min=True),
    seed=st.integers(0, 2**40),
)
def test_the_parts_are_disjoint_complete_and_not_empty(
    length: int, fraction: float, seed: int
) -> None:
    train, held = hold_out(examples(length), fraction, seed=seed)
    assert sorted([*train.picked, *held.picked]) == list(range(length))
    assert len(held) == max(1, min(round(length * fraction), length - 1))
    assert len(train) >= 1
    assert list(train.picked) == sorted(train.picked)


def test_the_seed_decides() -> None:
    data = examples(50)
    held = [list(hold_out(data, 0.2, seed=seed)[1].picked) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_nothing_is_held_out_of_nothing() -> None:
    train, held = hold_out(examples(1), 0.0, seed=0)
    assert (len(train), len(held)) == (1, 0)
    with pytest.raises(DataError, match=r"1 example cannot hold out .*data\.eval-fraction 0"):
        hold_out(examples(1), 0.1, seed=0)


def test_limit_keeps_so_many_in_order() -> None:
    data = examples(30)
    kept = list(limit(data, 10, seed=0).picked)
    assert len(set(kept)) == 10 and kept == sorted(kept)
    assert kept == list(limit(data, 10, seed=0).picked) != list(limit(data, 10, seed=1).picked)
    assert limit(data, 0, seed=0) is limit(data, 30, seed=0) is data
