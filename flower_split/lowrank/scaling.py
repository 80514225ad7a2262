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


MOST_ALPHA = 1e6
"""Largest alpha that a run or a silo may have."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the adapter of a silo may differ in from the run's."""

    scaling: Scaling
    """That of the run's adapter."""
    ranks: bool = False
    """Whether the rank may differ."""
    alphas: bool = False
    """Whether the alpha may differ."""
    max_r: int = 0
    """Largest rank of a silo; the run's own is allowed in any case."""
    strategy: str = "this run"
    """Name of the strategy, for errors."""
    takes_ranks: str = ""
    """Which strategies take mixed ranks, for errors."""
    takes_alphas: str = ""
    """Which strategies take mixed alphas, for errors."""

    @property
    def largest_r(self) -> int:
        """Largest rank of a silo where ranks may differ."""
        return max(self.max_r, self.scaling.r)

    @property
    def largest_alpha(self) -> float:
        """Largest alpha of a silo where alphas may differ."""
        return max(MOST_ALPHA, self.scaling.alpha)

    def problem(self, silo: Scaling) -> str:
        """Why a silo cannot take part with its scaling; empty when it can."""
        run = self.scaling
        if silo.rslora != run.rslora:
            return f"the silo has lora.rslora {silo.rslora}, the run {run.rslora}"
        if silo.r != run.r and not self.ranks:
            return self._refused("r", f"{silo.r}", f"{run.r}", self.takes_ranks)
        if silo.r > self.largest_r:
            return (
                f"the silo has lora.r {silo.r}, and silos of this run may have "
                f"{self.largest_r} at most: lower lora-r in its node config, or raise "
                "lora.max-r in the run config"
            )
        if silo.alpha != run.alpha and not self.alphas:
            return self._refused("alpha", f"{silo.alpha:g}", f"{run.alpha:g}", self.takes_alphas)
        if silo.alpha > self.largest_alpha:
            return f"the silo has lora.alpha {silo.alpha:g}, more than {self.largest_alpha:g}"
        return ""

    def _refused(self, key: str, silo: str, run: str, others: str) -> str:
        choose = f", or choose another strategy.name: {others}" if others else ""
        return (
            f"the silo has lora.{key} {silo}, the run lora.{key} {run}, and {self.strategy} "
            f"aggregates only adapters that all have the run's: leave lora-{key} out of the silo's "
            f"node config{choose}"
        )
