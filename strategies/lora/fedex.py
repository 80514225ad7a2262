"""`FedExLoRA`: A and B averaged apart, and what that misses folded into the model.

Singhal, Ponkshe & Vepakomma 2024, "FedEx-LoRA", arXiv:2410.09432.
"""

from dataclasses import replace

from flower_split.lowrank import Factors, recompressed, stacked
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.fedavg import factors_averaged_apart
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


def residual(module: ModuleRound, average: Factors) -> Factors:
    """Σ w_i s B_i A_i - s B A, of which `average` has the A and B.

    Computed as Σ w_i s (B_i - B) (A_i - A), which is the same as the weights sum to 1, and in
    which nothing large cancels.
    """
    deviations = [
        replace(update, a=update.a - average.a, b=update.b - average.b) for update in module.updates
    ]
    return stacked(deviations, module.weights)


class FedExLoRA(LoraStrategy):
    """Exact: the model's update after a round is the average of the silos' updates.

    The residual is added to the frozen adapter `folded`, which is the part of the frozen weights
    that the paper edits. Its rank grows by at most silos x r a round, up to the module's full rank.
    """

    name = "fedexlora"
    folds = True

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The factors averaged apart, and the `residual` folded into the module."""
        average = factors_averaged_apart(module.weighted)
        missed = residual(module, average)
        parts = [missed] if module.folded is None else [module.folded, missed]
        return ModuleResult(
            trained=average, folded=recompressed(stacked(parts, [1.0] * len(parts)))
        )
