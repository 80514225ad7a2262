"""One module's share of a LoRA aggregation: what goes in, and what comes out."""

from dataclasses import dataclass

from flower_split.lowrank import Factors, Pair


@dataclass(frozen=True, kw_only=True)
class ModuleRound:
    """What is known of one module in one round; all float64 and at the global scale."""

    pair: Pair
    before: Factors
    """The global adapter that the round began with."""
    folded: Factors | None
    """What was folded into the module until then, scale 1."""
    updates: list[Factors]
    """The silos' adapters, in the order of their replies."""
    weights: list[float]
    """Of the silos; they sum to 1."""
    rank: int
    """Of the global adapter after the round: the largest of all silos known, and of the start."""
    server_round: int

    @property
    def weighted(self) -> list[tuple[float, Factors]]:
        """Weight and adapter of every silo."""
        return list(zip(self.weights, self.updates, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModuleResult:
    """A module's share of the global adapter after a round."""

    trained: Factors
    folded: Factors | None = None
    """What is folded into the module now, scale 1; None leaves it as it was."""
