"""F4: continuous matching. Embeddings are moved until the bottom makes of them what was seen.

It begins with what an inverter believes, and knows the bottom (He et al., "Model Inversion Attacks
against Collaborative Inference", ACSAC 2019, doi:10.1145/3359789.3359824; its white box).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.audit.attacks.descent import descend
from flower_split.audit.attacks.nearest import AT_ONCE
from flower_split.audit.attacks.search import clipped
from flower_split.audit.recording import Recording
from flower_split.config.wire import WireConfig

STEPS = 800
"""Of the descent at most."""
RATE = 0.1
"""Of Adam, in standard deviations of the embeddings' elements."""
DONE = 3e-4
"""Mean of the squared distances over what was seen with which nothing is left to gain; with noise,
its share of what was seen is, as who comes nearer fits the noise."""

Embedded = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """What matching came to."""

    found: Tensor
    """(D, T) int64."""
    steps: int
    converged: bool
    error: float
    """Mean over rows of the squared distance to what was seen, over its square."""


def match(
    recording: Recording,
    scores: Tensor,
    table: Tensor,
    bottom: Embedded,
    wire: WireConfig,
    *,
    steps: int = STEPS,
    check: Callable[[], None] = lambda: None,
) -> Matched:
    """The texts of the first D rows of a recording.

    Of each text that is kept of which the bottom makes what is nearer to what was seen: the tokens
    next to the embeddings that were found, or those that it began with.

    Args:
        recording: With h1, (N, T, H).
        scores: (D, T, V): logarithms of what an inverter believes of every token.
        table: (V, E): what enters the first layer for every token.
        bottom: h1, (B, T, H) with a graph, of what enters, (B, T, E), and mask, (B, T).
        wire: Of the recording: rows are clipped alike.
        steps: Of the descent at most.
        check: Called at every step.
    """
    documents = len(scores)
    mask, seen = recording.mask[:documents], recording.h1[:documents]
    begun = scores.softmax(-1) @ table
    spread = table.std()
    moved = torch.zeros_like(begun, requires_grad=True)
    squares = seen.square().sum(-1).clamp_min(1e-12)

    def errors(embedded: Tensor) -> Tensor:
        gap = clipped(bottom(embedded, mask), wire) - seen
        return gap.square().sum(-1) / squares * mask

    def loss() -> Tensor:
        return errors(begun + spread * moved).sum() / mask.sum()

    noise = seen.shape[-1] * wire.deviation_of("h1") ** 2
    level = float((noise / squares * mask).sum() / mask.sum())
    done = descend([moved], loss, rate=RATE, most_steps=steps, done=max(DONE, level), check=check)
    with torch.no_grad():
        found = nearest_rows((begun + spread * moved).detach(), table)
        first = scores.argmax(-1)
        nearer = errors(F.embedding(found, table)).sum(1) < errors(F.embedding(first, table)).sum(1)
    return Matched(
        found=torch.where(nearer[:, None], found, first),
        steps=done.steps,
        converged=done.converged,
        error=done.loss,
    )


def nearest_rows(embedded: Tensor, table: Tensor) -> Tensor:
    """(D, T) int64: the row of a table, (V, E), that is the nearest to each of (D, T, E)."""
    rows = embedded.reshape(-1, embedded.shape[-1])
    offset = table.square().sum(1) / 2
    size = max(1, AT_ONCE // len(table))
    found = [(part @ table.T - offset).argmax(1) for part in rows.split(size)]
    return torch.cat(found).reshape(embedded.shape[:2])
