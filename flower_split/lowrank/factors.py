"""Factors: one module's LoRA update, as two thin matrices and a scale."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """The update `scale * b @ a` of one module, never multiplied out unless asked for."""

    a: Tensor
    """(r, inputs)."""
    b: Tensor
    """(outputs, r)."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(
                f"factors of shapes {tuple(self.b.shape)} and {tuple(self.a.shape)} have no product"
            )

    @property
    def rank(self) -> int:
        """Rows of a and columns of b; the update's own rank may be lower."""
        return self.a.shape[0]

    @property
    def full_rank(self) -> int:
        """The largest rank that an update of this shape can have."""
        return min(self.a.shape[1], self.b.shape[0])

    def product(self) -> Tensor:
        """The dense update (outputs, inputs)."""
        return self.scale * (self.b @ self.a)

    def in_float64(self) -> "Factors":
        """The same in float64."""
        return replace(self, a=self.a.double(), b=self.b.double())

    def in_float32(self) -> "Factors":
        """The same, rounded to float32."""
        return replace(self, a=self.a.float(), b=self.b.float())

    def at_scale(self, scale: float) -> "Factors":
        """The same update with another scale; b makes up for it, and a stays as it is."""
        if scale == self.scale:
            return self
        return Factors(a=self.a, b=self.b * (self.scale / scale), scale=scale)

    def truncated(self, rank: int) -> "Factors":
        """The first `rank` components only; all of them when there are fewer."""
        return self if rank >= self.rank else replace(self, a=self.a[:rank], b=self.b[:, :rank])

    def zero_padded(self, rank: int) -> "Factors":
        """The same update with zero components up to `rank`."""
        more = rank - self.rank
        if more <= 0:
            return self
        a = torch.nn.functional.pad(self.a, (0, 0, 0, more))
        return replace(self, a=a, b=torch.nn.functional.pad(self.b, (0, more)))

    def norm(self) -> float:
        """Frobenius norm of the update, from the (r, r) Gram matrices of its factors."""
        grams = (self.b.T @ self.b) * (self.a @ self.a.T)
        return self.scale * math.sqrt(max(float(grams.sum()), 0.0))
