"""Sequences of tokens, one after the other in one array, and what of them is learnt."""

import itertools
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor


class _Column(Sequence[Tensor]):
    """Rows of which a tensor is made where it is asked for."""

    @abstractmethod
    def _row(self, index: int) -> Tensor:
        """Row `index`, which is there."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Row `index`, or those of a slice."""
        places = range(len(self))[index]
        return self._row(places) if isinstance(places, int) else [self._row(at) for at in places]


class Ragged(_Column):
    """Rows of different lengths, each (numbers,) int64 of whole numbers below 2**31.

    They take four bytes a number; a tensor of each of a million rows would take hundreds more.
    """

    def __init__(self, rows: Sequence[Sequence[int]] = ()) -> None:
        self._values, self._ends = array("i"), array("q")
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[int]) -> None:
        """Add a row."""
        self._values.extend(row)
        self._ends.append(len(self._values))

    def __len__(self) -> int:
        return len(self._ends)

    def _row(self, index: int) -> Tensor:
        start = self._ends[index - 1] if index else 0
        part = self._values[start : self._ends[index]]
        return torch.from_numpy(np.array(part, dtype=np.int64))

    @property
    def size(self) -> int:
        """Numbers of all rows."""
        return len(self._values)

    @property
    def lengths(self) -> list[int]:
        """Numbers of every row."""
        return [end - start for start, end in itertools.pairwise(itertools.chain((0,), self._ends))]


class Scalars(_Column):
    """Rows of one whole number, each () int64."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._values = array("i", values)

    def append(self, value: int) -> None:
        """Add a row."""
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._values)

    def _row(self, index: int) -> Tensor:
        return torch.tensor(self._values[index])


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedDataset:
    """Sequences of tokens, each with what of it gets a loss."""

    sequences: Sequence[Tensor]
    """Token ids of every sequence: (tokens,) int64, not padded."""
    prompt_lengths: Sequence[int]
    """Leading tokens of every sequence without a loss: BOS, prompt and separator."""
    pad_id: int
    """Token id that fills up rows; attention mask and labels exclude it."""
    learnt: Sequence[Tensor] = ()
    """Of every sequence the tokens with a loss, (tokens,) of 0 and 1; empty where all behind the
    prompt have one."""
    lengths: Sequence[Tensor] = ()
    """Of every packed row the tokens of each sequence in it, (sequences,); empty where a row is a
    sequence."""
    examples: int | None = None
    """Examples that the sequences were made of, by which a silo is weighed: one that was divided
    counts as often as it has sequences. None for as many as there are sequences."""
    truncated: int = 0
    """Examples that were cut off at the maximum length."""
    divided: int = 0
    """Examples that became several sequences."""
    dropped: int = 0
    """Examples left out, because no target token was within the maximum length."""
    lost: int = 0
    """Tokens of examples that were cut off or dropped, beyond what is in a sequence."""
    carried: int = 0
    """Examples that carry the tokenizer's special tokens already, which are not added again."""

    def __len__(self) -> int:
        return len(self.sequences)

    def select(self, indices: Sequence[int]) -> "TokenizedDataset":
        """The sequences at `indices` of a data set that is not packed."""
        return replace(
            self,
            sequences=Ragged([self.sequences[index].tolist() for index in indices]),
            prompt_lengths=[self.prompt_lengths[index] for index in indices],
            learnt=Ragged([self.learnt[index].tolist() for index in indices])
            if self.learnt
            else (),
            examples=None,
        )

    @property
    def num_examples(self) -> int:
        """Examples that the sequences were made of."""
        return len(self) if self.examples is None else self.examples

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(lengths_of(self.sequences))

    @property
    def num_targets(self) -> int:
        """Tokens that get a loss; nothing predicts the first token of a sequence."""
        if self.learnt:
            return sum(int(flags[1:].sum()) for flags in self.learnt)
        return sum(
            length - max(1, prompt)
            for length, prompt in zip(lengths_of(self.sequences), self.prompt_lengths, strict=True)
        )


def lengths_of(rows: Sequence[Tensor]) -> list[int]:
    """Numbers of every row."""
    return rows.lengths if isinstance(rows, Ragged) else [len(row) for row in rows]
