"""Batching: tokenised sequences become padded microbatches, in an order that a seed decides."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flower_split.config.seeds import derive_seed
from flower_split.data.packing import positions
from flower_split.data.sequences import TokenizedDataset
from flower_split.data.task_data import TaskDataset
from flower_split.errors import DataError
from flower_split.optimization.loss import IGNORED

Dataset = TokenizedDataset | TaskDataset

OnePass = Callable[[int], Iterator[dict[str, Tensor]]]
"""The batches of a pass, by the number of the pass from 0."""


class Passes:
    """Batches of a data set: every iteration is a pass, `len` is the number of batches in it."""

    def __init__(self, num_batches: int, one_pass: OnePass) -> None:
        self._num_batches = num_batches
        self._one_pass = one_pass
        self._begun = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._begun += 1
        return self._one_pass(self._begun - 1)


def train_batches(
    dataset: Dataset, batch_size: int, *, seed: int, silo: int, round_number: int
) -> Passes:
    """A round's training batches: each iteration a pass in an order of its own.

    The orders depend on nothing but the arguments and the number of the iteration.

    Args:
        dataset: The silo's training data.
        batch_size: Rows of a batch; the last one of a pass may have fewer.
        seed: The run's seed.
        silo: The silo's number.
        round_number: The federated round.

    Raises:
        DataError: there is nothing to train on.
    """
    own = derive_seed(seed, "train", silo, round_number)
    return Passes(
        _num_batches(dataset, batch_size, "train on"),
        lambda epoch: batches(dataset, batch_size, seed=own, epoch=epoch),
    )


def eval_batches(dataset: Dataset, batch_size: int) -> Passes:
    """The batches of held-out data, in its own order at every iteration.

    Raises:
        DataError: nothing is held out.
    """
    return Passes(
        _num_batches(dataset, batch_size, "evaluate on"),
        lambda _: _collated(dataset, range(len(dataset)), batch_size),
    )


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, epoch: int
) -> Iterator[dict[str, Tensor]]:
    """One pass over the data in mixed order, the same for the same seed and epoch.

    Yields:
        `input_ids`, `attention_mask`, `labels`: (rows, tokens) int64, rows padded on the right
        to the longest of the batch. The last batch may have fewer than `batch_size` rows. `labels`
        are (rows,) where sequences are classified. Packed rows have `position_ids` in place of
        the mask, by which the stock code finds their sequences.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
    order: list[int] = torch.randperm(len(dataset), generator=generator).tolist()
    return _collated(dataset, order, batch_size, derive_seed(seed, "masks", epoch))


def collate(dataset: Dataset, rows: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """The batch of the given examples, as `batches` yields it.

    Args:
        dataset: Has them.
        rows: Their places.
        seed: Of what is masked, where the task masks tokens.
    """
    if isinstance(dataset, TaskDataset):
        return dataset.collate(rows, seed)
    sequences = [dataset.sequences[row] for row in rows]
    size = (len(rows), max(map(len, sequences)))
    input_ids = torch.full(size, dataset.pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(size, dtype=torch.int64)
    labels = torch.full(size, IGNORED, dtype=torch.int64)
    for i, (row, ids) in enumerate(zip(rows, sequences, strict=True)):
        prompt = dataset.prompt_lengths[row]
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        if dataset.learnt:
            ids = ids.masked_fill(dataset.learnt[row] == 0, IGNORED)
        labels[i, prompt : len(ids)] = ids[prompt:]
    if not dataset.lengths:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    position_ids = torch.stack([positions(dataset.lengths[row], size[1]) for row in rows])
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def _num_batches(dataset: Dataset, batch_size: int, purpose: str) -> int:
    if len(dataset) == 0:
        raise DataError(
            f"there is no example to {purpose}: give the silo more data, or set data.eval-fraction "
            "above 0 or data.eval-path where it is evaluated"
        )
    return math.ceil(len(dataset) / batch_size)


def _collated(
    dataset: Dataset, order: Sequence[int], batch_size: int, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(order), batch_size):
        yield collate(dataset, order[start : start + batch_size], derive_seed(seed, start))
