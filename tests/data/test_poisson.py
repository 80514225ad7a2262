"""Every example is in every step by itself, with the same chance."""

from collections import Counter

import pytest
import torch

from flower_split.data import PoissonBatches, TokenizedDataset
from flower_split.data.sequences import Ragged
from flower_split.errors import DataError


def dataset(count: int, **changes: object) -> TokenizedDataset:
    rows = [[number, 1, 2] for number in range(count)]
    fields = {"sequences": Ragged(rows), "prompt_lengths": [0] * count, "pad_id": 0, **changes}
    return TokenizedDataset(**fields)  # type: ignore[arg-type]


def drawn(batches: PoissonBatches, steps: int) -> list[list[int]]:
    return [
        [row for batch in step for row in batch["input_ids"][:, 0].tolist()]
        for step in batches.drawn(steps)
    ]


def test_examples_are_drawn_each_by_itself() -> None:
    batches = PoissonBatches(dataset(50), batch_size=4, expected=10)
    assert (batches.chance, len(batches)) == (0.2, 13)
    steps = drawn(batches, 2000)
    assert all(len(set(step)) == len(step) for step in steps)
    sizes = torch.tensor([float(len(step)) for step in steps])
    assert float(sizes.mean()) == pytest.approx(10, abs=0.3)
    assert float(sizes.var()) == pytest.approx(50 * 0.2 * 0.8, rel=0.2)
    often = Counter(row for step in steps for row in step)
    assert all(abs(often[row] / 2000 - 0.2) < 0.05 for row in range(50))
    pairs = sum({3, 4} <= set(step) for step in steps) / 2000
    assert pairs == pytest.approx(0.04, abs=0.02)


def test_steps_may_be_empty_and_microbatches_have_a_size() -> None:
    batches = PoissonBatches(dataset(6), batch_size=2, expected=1)
    steps = list(batches.drawn(200))
    assert any(not step for step in steps)
    assert all(1 <= len(batch["labels"]) <= 2 for step in steps for batch in step)


def test_two_are_never_alike() -> None:
    assert drawn(PoissonBatches(dataset(64), 8, 32), 4) != drawn(
        PoissonBatches(dataset(64), 8, 32), 4
    )


def test_what_cannot_be_drawn_from_is_refused() -> None:
    with pytest.raises(DataError, match=r"has 3 examples.*a step expects 4"):
        PoissonBatches(dataset(3), 2, 4)
    with pytest.raises(DataError, match=r"data\.long-texts to 'cut'"):
        PoissonBatches(dataset(9, divided=1), 2, 4)
    with pytest.raises(DataError, match=r"session\.train_steps"):
        iter(PoissonBatches(dataset(9), 2, 4))
