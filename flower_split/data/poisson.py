"""Poisson sampling: every example is in every step by itself, with the same chance.

What DP-SGD's account of privacy rests on (Abadi et al. 2016, arXiv:1607.00133): neither an order
through the data nor batches of one size, and random numbers that nobody can compute again.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from flower_split.data.batching import Dataset, collate
from flower_split.data.sequences import TokenizedDataset
from flower_split.errors import DataError
from flower_split.privacy import SecureNoise


class PoissonBatches:
    """The microbatches of steps whose examples are drawn.

    Args:
        dataset: The silo's training data.
        batch_size: Rows of a microbatch, at most.
        expected: Examples that a step draws in the mean.

    Raises:
        DataError: there are fewer examples than a step expects, or a row of a batch is not one
            example.
    """

    def __init__(self, dataset: Dataset, batch_size: int, expected: int) -> None:
        if len(dataset) < expected:
            raise DataError(
                f"the silo has {len(dataset)} examples to train on, and with DP-SGD (dp.noise) a "
                f"step expects {expected} of them (train.batch-size x train.accumulation): lower "
                "these, or give the silo more data"
            )
        if isinstance(dataset, TokenizedDataset) and (dataset.divided or dataset.lengths):
            raise DataError(
                "a text of the silo became several sequences, or several share a row, and DP-SGD "
                "(dp.noise) clips by row: it would protect parts of texts. Set data.long-texts to "
                "'cut' and data.packing to false"
            )
        self._dataset = dataset
        self._batch_size = batch_size
        self.chance = expected / len(dataset)
        """Of every example to be in a step."""
        self._random = SecureNoise()

    def __len__(self) -> int:
        return math.ceil(len(self._dataset) / self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """There is no pass.

        Raises:
            DataError: always.
        """
        raise DataError(
            "with DP-SGD (dp.noise) there are no passes over the data, because every step draws "
            "its examples: take session.train_steps() in place of session.train_batches()"
        )

    def drawn(self, steps: int) -> Iterator[list[dict[str, Tensor]]]:
        """The microbatches of so many steps, as `collate` gives them; none where none is drawn."""
        for _ in range(steps):
            rows = self._draw()
            yield [
                collate(self._dataset, rows[begin : begin + self._batch_size])
                for begin in range(0, len(rows), self._batch_size)
            ]

    def _draw(self) -> list[int]:
        drawn = self._random.uniform(len(self._dataset)) < self.chance
        found: list[int] = drawn.nonzero()[:, 0].tolist()
        return found
