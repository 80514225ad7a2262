"""Sequences: rows of different lengths in one array, which are what they were."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.data.sequences import Ragged, Scalars, TokenizedDataset


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8))
def test_rows_are_what_was_added(rows: list[list[int]]) -> None:
    found = Ragged(rows)
    assert [row.tolist() for row in found] == rows
    assert [row.tolist() for row in found[1:]] == rows[1:]
    assert len(found) == len(rows)
    assert (found.size, found.lengths) == (sum(map(len, rows)), [len(row) for row in rows])
    for index in range(-len(rows), len(rows)):
        assert found[index].tolist() == rows[index]
    with pytest.raises(IndexError):
        found[len(rows)]


def test_scalars_are_tensors_without_axes() -> None:
    found = Scalars([3, 1])
    found.append(-100)
    assert [value.tolist() for value in found] == [3, 1, -100]
    assert [value.shape for value in found[:1]] == [()]
    assert found[2].shape == () and len(found) == 3


def test_a_row_that_was_read_is_a_copy() -> None:
    found = Ragged([[1, 2]])
    found[0][0] = 7
    assert found[0].tolist() == [1, 2]


def test_targets_are_those_behind_the_prompt_and_never_the_first() -> None:
    rows, prompts = Ragged([[1, 2, 3], [4, 5]]), [0, 1]
    assert TokenizedDataset(sequences=rows, prompt_lengths=prompts, pad_id=0).num_targets == 3
    learnt = Ragged([[1, 0, 1], [1, 1]])
    data = TokenizedDataset(sequences=rows, prompt_lengths=prompts, pad_id=0, learnt=learnt)
    assert (data.num_targets, data.num_tokens, data.num_examples) == (2, 5, 2)
