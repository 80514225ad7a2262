"""U1: the span check on an adapter's gradient, and whether it can be applied.

The gradient of LoRA's A, (r, H), is a sum over tokens of vectors times the tokens' inputs, so its
rows lie in the span of these. Where a step has no more different tokens than r, they span the same
space: an input is in it if, and only if, its token was there (DAGER, Petrov et al.,
arXiv:2405.15586). With more tokens the rows span only a part of that space, in which no single
input lies: the check is then inapplicable, which is not 0 %. What counts is the rank of the rows
themselves: where two of them depend on one another, as after one step of AdamW from factors of
zeros, r of them span less than r.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

APART = 1e-3
"""Share of an input's length outside of the span below which it lies in it."""
RANK = 1e-5
"""Singular values below this share of the largest one are rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepGradient:
    """The gradient of LoRA factors A that are given the same input, of a step over one text."""

    gradient: Tensor
    """(R, H): of all factors, below one another; or what a step made of them."""
    inputs: Callable[[int], Tensor]
    """What the factors are given for every token at a place: (V, H)."""
    moving: bool
    """Whether that differs from place to place."""
    ids: Tensor
    """(T,): the tokens of the text that something with a loss is computed of."""
    rank: int
    """Of the gradient where tokens do not bound it, at most R."""


@dataclass(frozen=True, kw_only=True)
class SpanCheck:
    """What one check came to."""

    tokens: int
    """Different ones; with their places, where a place adds to the input."""
    rank: int
    """Of the gradient of the factors together, where tokens do not bound it."""
    applicable: bool
    """Whether the step has no more tokens than the rank."""
    found: float
    """Share of the text's tokens of which the input lies in the span."""
    false: float
    """Share of other tokens of the vocabulary of which it does too."""

    @property
    def fields(self) -> dict[str, object]:
        """As a report holds it."""
        return asdict(self)


def span_check(step: StepGradient) -> SpanCheck:
    """Which tokens' inputs lie in the span of the gradient's rows."""
    found, false = list[float](), list[float]()
    inside = Tensor()
    for place, token in enumerate(step.ids.tolist()):
        if step.moving or not place:
            inside = in_span(step.gradient, step.inputs(place))
        others = torch.ones(len(inside), dtype=torch.bool)
        others[token if step.moving else step.ids] = False
        found.append(float(inside[token]))
        false.append(float(inside[others].double().mean()))
    tokens = len(step.ids) if step.moving else len(step.ids.unique())
    return SpanCheck(
        tokens=tokens,
        rank=step.rank,
        applicable=tokens <= step.rank,
        found=sum(found) / len(found),
        false=sum(false) / len(false),
    )


def in_span(gradient: Tensor, inputs: Tensor) -> Tensor:
    """(V,) of bool: whether an input, of (V, H), lies in the span of the rows of (R, H)."""
    _, values, directions = torch.linalg.svd(gradient.double(), full_matrices=False)
    basis = directions[: _beyond_rounding(values)]
    given = inputs.double()
    outside = given - (given @ basis.T) @ basis
    inside: Tensor = outside.norm(dim=1) < APART * given.norm(dim=1)
    return inside


def numerical_rank(gradient: Tensor) -> int:
    """Of the rows of (R, H): singular values that are more than rounding."""
    return _beyond_rounding(torch.linalg.svdvals(gradient.double()))


def rank_of_step(gradient: Tensor, tokens: int, rank: int) -> int:
    """Rank of the factors' gradient of a step, which some texts leave below its usual one.

    Args:
        gradient: (R, H): of the step.
        tokens: Different ones of the text.
        rank: Of the gradient of a longer text.
    """
    own = numerical_rank(gradient)
    return own if own < min(tokens, rank) else rank


def _beyond_rounding(values: Tensor) -> int:
    return int((values > RANK * values.max()).sum())


def sizes(rank: int, longest: int) -> list[int]:
    """Tokens of the texts that are looked at: half of the rank, as many, one more, and twice.

    Args:
        rank: Of the gradient of the factors together.
        longest: Tokens that a text has at most.
    """
    wanted = {min(max(1, rank // 2), longest), rank, rank + 1, 2 * rank}
    return sorted(size for size in wanted if size <= longest)
