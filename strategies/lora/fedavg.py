"""`FedAvgLoRA`: A and B averaged apart, the baseline.

"FedIT", Zhang et al. 2023, arXiv:2305.05644; FedAvg is McMahan et al. 2017, arXiv:1602.05629.
"""

from collections.abc import Iterable

from flower_split.lowrank import Factors
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


def factors_averaged_apart(weighted: Iterable[tuple[float, Factors]]) -> Factors:
    """A = Σ w_i A_i and B = Σ w_i B_i, of factors of one rank and one scale.

    s B A is not the average Σ w_i s B_i A_i of the updates, unless all A or all B are the same.
    """
    (weight, first), *others = weighted
    a, b = weight * first.a, weight * first.b
    for weight, update in others:
        a.add_(update.a, alpha=weight)
        b.add_(update.b, alpha=weight)
    return Factors(a=a, b=b, scale=first.scale)


class FedAvgLoRA(LoraStrategy):
    """Averages A and B apart, by the silos' numbers of examples.

    Silos of one rank and different alphas are brought to one scale first, by their B.
    """

    name = "fedavglora"

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The factors averaged apart, see `factors_averaged_apart`."""
        return ModuleResult(trained=factors_averaged_apart(module.weighted))
