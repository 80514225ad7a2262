"""Scaling: rank and alpha of a LoRA adapter, and the factor that they give its product."""

import math
from dataclasses import dataclass

MAX_RANK = 65536


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What a silo's adapter is multiplied with, in PEFT's terms.

    Raises:
        ValueError: a rank outside 1 to 65536, or an alpha that is not a finite number above 0.
    """

    r: int
    """Rank: rows of A, columns of B."""
    alpha: float
    """The update is `alpha / r * B @ A` (Hu et al. 2021, arXiv:2106.09685)."""
    rslora: bool = False
    """`alpha / sqrt(r)` instead (Kalajdzievski 2023, arXiv:2312.03732)."""

    def __post_init__(self) -> None:
        if not 1 <= self.r <= MAX_RANK:
            raise ValueError(f"a LoRA rank must be from 1 to {MAX_RANK}, not {self.r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"a LoRA alpha must be a number above 0, not {self.alpha}")

    @property
    def factor(self) -> float:
        """What `B @ A` is multiplied with."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def __str__(self) -> str:
        return f"lora.r {self.r}, lora.alpha {self.alpha:g}, lora.rslora {self.rslora}"
