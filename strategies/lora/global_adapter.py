"""The global adapter: what a LoRA strategy's arrays hold between two rounds."""

from dataclasses import dataclass

from flwr.app import ArrayRecord
from torch import Tensor

from flower_split.lowrank import Factors, Pair, Scaling, pair_up
from flower_split.strategies.hosting.adapter_parts import to_tensors


class GlobalAdapter:
    """LoRA factors of one scale and, where something was folded into the model, folded ones.

    Args:
        arrays: All of them.
        scale: Of the factors that are not folded ones.

    Raises:
        AdapterError: a tensor is no LoRA factor, or its partner is missing.
        ValueError: two partners have no product.
    """

    def __init__(self, arrays: ArrayRecord, scale: float) -> None:
        self.state = to_tensors(arrays)
        self.scale = scale
        pairs = pair_up(self.state)
        self.pairs = [pair for pair in pairs if not pair.folded]
        self._folded = {pair.module: pair for pair in pairs if pair.folded}
        for pair in pairs:
            Factors(a=self.state[pair.a], b=self.state[pair.b])

    @property
    def names(self) -> list[str]:
        """Names of the factors that are not folded ones."""
        return [name for pair in self.pairs for name in (pair.a, pair.b)]

    def factors(self, pair: Pair) -> Factors:
        """The trained factors of the pair's module, at the global scale."""
        return Factors(a=self.state[pair.a], b=self.state[pair.b], scale=self.scale)

    def folded(self, pair: Pair) -> Factors | None:
        """What is folded into the pair's module; None for nothing."""
        beneath = self._folded.get(pair.module)
        if beneath is None:
            return None
        return Factors(a=self.state[beneath.a], b=self.state[beneath.b])

    def fitted(self, node: Scaling) -> dict[str, Tensor]:
        """Everything, as a silo of that rank and scale has use for it."""
        fitted = dict(self.state)
        for pair in self.pairs:
            own = self.factors(pair).truncated(node.r).at_scale(node.factor)
            fitted |= {pair.a: own.a.contiguous(), pair.b: own.b.contiguous()}
        return fitted


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
    """Weights of the silos in averages; they sum to 1."""
    rank: int
    """Rank of the global adapter after the round: the largest of all known silos' and its first."""
    server_round: int

    @property
    def weighted(self) -> list[tuple[float, Factors]]:
        """Weight and adapter of every silo, in the order of their replies."""
        return list(zip(self.weights, self.updates, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModuleResult:
    """A module's share of the global adapter after a round."""

    trained: Factors
    folded: Factors | None = None
    """What is folded into the module now, scale 1; None leaves it as it was."""
