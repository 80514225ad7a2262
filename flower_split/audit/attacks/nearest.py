"""F1: the nearest neighbour of each token's h1 among the model's public embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flower_split.audit.recording import Recording

MEASURES = ("cosine", "L2", "mean removed")
AT_ONCE = 1 << 24
"""Elements of a table of similarities."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """What enters the first layer for every token: a table, and what a position adds to it."""

    table: Tensor
    """(V, H) float32, at the first position."""
    positions: Tensor
    """(T, H) float32: what later positions add; zeros where a model adds nothing."""

    def without_positions(self, h1: Tensor) -> Tensor:
        """h1, (N, T, H), less what its positions add."""
        return h1 - self.positions[: h1.shape[1]]


def embeddings(bottom: Callable[[Tensor], Tensor], vocabulary: int, tokens: int) -> Embeddings:
    """The table, found by calling a bottom without layers.

    Args:
        bottom: h1, (B, T, H), of token ids, (B, T); without layers.
        vocabulary: Tokens that the model knows.
        tokens: Positions that are needed.
    """
    parts = [
        bottom(torch.arange(begin, min(begin + 8192, vocabulary))[:, None])[:, 0]
        for begin in range(0, vocabulary, 8192)
    ]
    table = torch.cat(parts)
    row = bottom(torch.zeros(1, tokens, dtype=torch.int64))[0]
    return Embeddings(table=table, positions=row - row[:1])


def nearest(
    recording: Recording,
    known: Embeddings,
    measure: str,
    *,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """(N, T) int64: for every row of h1 the token whose embedding is the nearest.

    Args:
        recording: With h1.
        known: The embeddings.
        measure: One of `MEASURES`; `mean removed` is the cosine after the mean of either side was
            taken off.
        check: Called now and then.
    """
    seen = known.without_positions(recording.h1)
    count, tokens, hidden = seen.shape
    rows = seen.reshape(-1, hidden)
    table = known.table
    if measure == "mean removed":
        # A first token of hundreds of times the norm of others would be the mean.
        inner = recording.mask.clone()
        inner[:, 0] = False
        rows = rows - rows[inner.reshape(-1)].mean(0)
        table = table - table.mean(0)
    offset = torch.zeros(len(table))
    if measure == "L2":
        offset = table.square().sum(1) / 2
    else:
        table = torch.nn.functional.normalize(table, dim=1)
    size = max(1, AT_ONCE // len(table))
    found = list[Tensor]()
    for begin in range(0, len(rows), size):
        check()
        found.append((rows[begin : begin + size] @ table.T - offset).argmax(1))
    return torch.cat(found).reshape(count, tokens)
