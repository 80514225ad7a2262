"""Allowance: which ranks and alphas a run's strategy lets its silos choose for themselves."""

from dataclasses import dataclass

from flower_split.lowrank.scaling import Scaling

MOST_ALPHA = 1e6
"""Largest alpha that a run or a silo may have."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the adapter of a silo may differ in from the run's."""

    scaling: Scaling
    """The run's."""
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

    def problem(self, silo: Scaling) -> str:
        """Why a silo cannot take part with its scaling; empty when it can."""
        run = self.scaling
        if silo.rslora != run.rslora:
            return f"the silo has lora.rslora {silo.rslora}, the run {run.rslora}"
        if silo.r != run.r and not self.ranks:
            return self._refused("r", f"{silo.r}", f"{run.r}", self.takes_ranks)
        if silo.r > max(self.max_r, run.r):
            return (
                f"the silo has lora.r {silo.r}, and silos of this run may have "
                f"{max(self.max_r, run.r)} at most: lower lora-r in its node config, or raise "
                "lora.max-r in the run config"
            )
        if silo.alpha != run.alpha and not self.alphas:
            return self._refused("alpha", f"{silo.alpha:g}", f"{run.alpha:g}", self.takes_alphas)
        if silo.alpha > max(MOST_ALPHA, run.alpha):
            return f"the silo has lora.alpha {silo.alpha:g}, more than {MOST_ALPHA:g}"
        return ""

    def _refused(self, key: str, silo: str, run: str, others: str) -> str:
        choose = f", or choose another strategy.name: {others}" if others else ""
        return (
            f"the silo has lora.{key} {silo}, the run lora.{key} {run}, and {self.strategy} "
            f"aggregates only adapters that all have the run's: leave lora-{key} out of the silo's "
            f"node config{choose}"
        )
