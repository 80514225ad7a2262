"""Packing: several short sequences in one row, each with positions of its own.

By positions that begin again the stock code finds the sequences of a row, where it is called
without a mask, and lets none of them see another. So a row's loss is that of its sequences one by
one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flower_split.data.sequences import Ragged, TokenizedDataset, lengths_of


def pack(dataset: TokenizedDataset, max_length: int) -> TokenizedDataset:
    """The same sequences in fewer rows, each of at most `max_length` tokens.

    The longest first, each goes into the row in which it leaves least room.

    Args:
        dataset: Sequences of at most `max_length` tokens.
        max_length: Tokens of a row.
    """
    rows, learnt, lengths = Ragged(), Ragged(), Ragged()
    for group in _groups(lengths_of(dataset.sequences), max_length):
        ids, flags, sizes = list[int](), list[int](), list[int]()
        for number in group:
            sequence = dataset.sequences[number]
            own = _flags(dataset, number, len(sequence))
            own[0] = 0  # the token before it is another sequence's
            ids += sequence.tolist()
            flags += own.tolist()
            sizes.append(len(sequence))
        rows.append(ids)
        learnt.append(flags)
        lengths.append(sizes)
    return replace(
        dataset,
        sequences=rows,
        prompt_lengths=[0] * len(rows),
        learnt=learnt,
        lengths=lengths,
        examples=dataset.num_examples,
    )


def positions(lengths: Tensor, width: int) -> Tensor:
    """Positions in a packed row of `width` tokens, (width,): padding is a sequence of its own."""
    padding = width - int(lengths.sum())
    parts = [*lengths.tolist(), *([padding] if padding else [])]
    return torch.cat([torch.arange(part) for part in parts])


def _flags(dataset: TokenizedDataset, number: int, length: int) -> Tensor:
    if dataset.learnt:
        return dataset.learnt[number].clone()
    flags = torch.ones(length, dtype=torch.int64)
    flags[: dataset.prompt_lengths[number]] = 0
    return flags


def _groups(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which sequences share a row: best fit, the longest first, in an order that is always the
    same."""
    by_room: dict[int, list[int]] = {}  # rows by the room that is left in them
    free = _Free(room)
    groups = list[list[int]]()
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        left = free.least(length)
        if left is None:
            groups.append([])
            row, left = len(groups) - 1, room
        else:
            row = by_room[left].pop()
            free.change(left, len(by_room[left]))
        groups[row].append(number)
        left -= length
        by_room.setdefault(left, []).append(row)
        free.change(left, len(by_room[left]))
    return groups


class _Free:
    """Which amounts of room there are: a tree of counts over 0 to `room`."""

    def __init__(self, room: int) -> None:
        self._size = 1 << room.bit_length()
        self._tree = bytearray(2 * self._size)

    def change(self, room: int, count: int) -> None:
        """There are `count` rows with so much room."""
        node = self._size + room
        self._tree[node] = bool(count)
        while node > 1:
            node //= 2
            self._tree[node] = self._tree[2 * node] | self._tree[2 * node + 1]

    def least(self, wanted: int) -> int | None:
        """The least room of at least `wanted`; None where there is none."""
        node = self._size + wanted
        if self._tree[node]:
            return wanted
        while node > 1:
            if node % 2 == 0 and self._tree[node + 1]:
                node += 1
                while node < self._size:
                    node = 2 * node if self._tree[2 * node] else 2 * node + 1
                return node - self._size
            node //= 2
        return None
