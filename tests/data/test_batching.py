"""Batching: padding that nothing sees, and an order that the seed decides."""

import pytest
import torch

from flower_split.data import TokenizedDataset, batches, eval_batches, train_batches
from flower_split.data.batching import Passes
from flower_split.errors import DataError


def dataset(*sequences: list[int], prompts: tuple[int, ...] = (), pad: int = 0) -> TokenizedDataset:
    return TokenizedDataset(
        sequences=tuple(torch.tensor(ids) for ids in sequences),
        prompt_lengths=prompts or (0,) * len(sequences),
        pad_id=pad,
    )


MANY = dataset(*([i, i + 1] for i in range(25)))


def order(passes: Passes) -> list[int]:
    return [int(row[0]) for batch in passes for row in batch["input_ids"]]


def one_pass(seed: int, epoch: int, batch_size: int = 4) -> list[int]:
    found = batches(MANY, batch_size, seed=seed, epoch=epoch)
    return [int(row[0]) for batch in found for row in batch["input_ids"]]


def test_a_batch_by_hand() -> None:
    (batch,) = eval_batches(dataset([5, 6, 7, 2], [8, 2], prompts=(2, 1), pad=2), 3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 2], [-100, 2, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_batch_is_as_long_as_its_longest() -> None:
    lengths = [
        batch["input_ids"].shape for batch in eval_batches(dataset([1] * 5, [1] * 2, [1] * 3), 2)
    ]
    assert lengths == [(2, 5), (1, 3)]


@pytest.mark.parametrize("batch_size", [1, 4, 25, 100])
def test_a_pass_has_every_example_once(batch_size: int) -> None:
    assert sorted(one_pass(0, 0, batch_size)) == list(range(25))


def test_seed_and_epoch_decide_the_order() -> None:
    assert one_pass(0, 0) == one_pass(0, 0)
    assert len({tuple(one_pass(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert one_pass(0, 0) == one_pass(0, 0, batch_size=7)


def test_every_iteration_of_a_round_is_a_pass_of_its_own() -> None:
    passes = [train_batches(MANY, 4, seed=0, silo=0, round_number=1) for _ in range(2)]
    assert len(passes[0]) == 7
    first, again = ([order(one) for _ in range(3)] for one in passes)
    assert first == again
    assert len(set(map(tuple, first))) == 3
    others = [
        order(train_batches(MANY, 4, seed=0, silo=1, round_number=1)),
        order(train_batches(MANY, 4, seed=0, silo=0, round_number=2)),
        order(train_batches(MANY, 4, seed=1, silo=0, round_number=1)),
    ]
    assert len({tuple(one) for one in [first[0], *others]}) == 4


def test_evaluation_keeps_the_order_at_every_iteration() -> None:
    passes = eval_batches(MANY, 4)
    assert len(passes) == 7
    assert order(passes) == order(passes) == list(range(25))


def test_no_data_is_an_error() -> None:
    with pytest.raises(DataError, match="no example to train on"):
        train_batches(dataset(), 4, seed=0, silo=0, round_number=1)
    with pytest.raises(DataError, match=r"no example to evaluate on: .*data\.eval-fraction"):
        eval_batches(dataset(), 4)
