"""F4: continuous matching. Embeddings are moved until the bottom makes of them what was seen.

It begins with what an inverter believes, and knows the bottom (He et al., "Model Inversion Attacks
against Collaborative Inference", ACSAC 2019, doi:10.1145/3359789.3359824; its white box).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.audit.attacks.least_squares import solve
from flower_split.audit.attacks.nearest import AT_ONCE
from flower_split.audit.attacks.search import clipped
from flower_split.audit.recording import Recording
from flower_split.compression.table import CODEC_TABLE, round_trip
from flower_split.config.wire import WireConfig

STEPS = 2500
"""Products with the bottom's Jacobian at most."""
DONE = 3e-4
"""Mean of the squared distances over what was seen with which nothing is left to gain; with noise,
its share of what was seen is, as who comes nearer fits the noise."""

LEAST_SPREAD = 1e-4
"""Variance in any direction, as a share of the mean one."""

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
        steps: Products with the Jacobian at most.
        check: Called at every product.
    """
    documents = len(scores)
    mask, seen = recording.mask[:documents], recording.h1[:documents]
    believed = scores.softmax(-1) @ table
    squares = seen.square().sum(-1).clamp_min(1e-12)
    weights = (mask / squares / mask.sum()).sqrt()[..., None]
    mean, spread = table.mean(0), _spread(table)

    def residuals(embedded: Tensor, rows: Tensor) -> Tensor:
        made = clipped(bottom(embedded, mask[rows]), wire)
        return (made - seen[rows]) * weights[rows]

    def of_places(at: Tensor, rows: Tensor) -> Tensor:
        return residuals(mean + at @ spread, rows)

    first = scores.argmax(-1)
    with torch.no_grad():
        sent = clipped(bottom(F.embedding(first, table), mask), wire)
    noise = seen.shape[-1] * wire.deviation_of("h1") ** 2
    level = max(DONE, float((noise * weights.square()).sum()))
    # What a codec rounds may stay; coming nearer still finds more of it than it fits.
    rounded = float((squares * _rounded(sent, wire) * weights[..., 0].square()).sum())
    begun = torch.linalg.solve(spread, believed - mean, left=False)
    done = solve(of_places, begun, done=level, most_steps=steps, check=check)
    with torch.no_grad():
        found = nearest_rows(mean + done.at @ spread, table)
        rows = torch.arange(documents)

        def errors(ids: Tensor) -> Tensor:
            return residuals(F.embedding(ids, table), rows).square().sum((1, 2))

        nearer = errors(found) < errors(first)
    return Matched(
        found=torch.where(nearer[:, None], found, first),
        steps=done.steps,
        converged=done.converged or float(done.errors.sum()) <= level + rounded,
        error=float(done.errors.sum()),
    )


def _rounded(sent: Tensor, wire: WireConfig) -> Tensor:
    """(D, T): squared distance by which the codec of h1 rounds a row, over its square."""
    apart = round_trip(sent, CODEC_TABLE[wire.h1], "h1") - sent
    shares: Tensor = apart.square().sum(-1) / sent.square().sum(-1).clamp_min(1e-12)
    return shares


def _spread(table: Tensor) -> Tensor:
    """(E, E): by which a place of unit variance in all directions is one of the table's, (V, E).

    So changes are dear where no two tokens' embeddings differ.
    """
    covariance = torch.cov(table.T)
    least = LEAST_SPREAD * covariance.diag().mean()
    spread: Tensor = torch.linalg.cholesky(covariance + least * torch.eye(len(covariance))).T
    return spread


def nearest_rows(embedded: Tensor, table: Tensor) -> Tensor:
    """(D, T) int64: the row of a table, (V, E), that is the nearest to each of (D, T, E)."""
    rows = embedded.reshape(-1, embedded.shape[-1])
    offset = table.square().sum(1) / 2
    size = max(1, AT_ONCE // len(table))
    found = [(part @ table.T - offset).argmax(1) for part in rows.split(size)]
    return torch.cat(found).reshape(embedded.shape[:2])
