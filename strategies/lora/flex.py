"""`FlexLoRA`: the average of the silos' updates, as factors of each silo's own rank.

Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources", arXiv:2402.11505.
"""

from flower_split.lowrank import leading, stacked
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


class FlexLoRA(LoraStrategy):
    """Averages the updates exactly, then keeps the best approximation of the largest rank.

    Σ w_i s_i B_i A_i = U S Vᵀ; a silo of rank r gets B = U[:, :r] S[:r] and A = Vᵀ[:r], the best
    approximation of its rank. The paper leaves open which factor gets S: here it is B, so that a
    component with a singular value of 0 can still be trained, as in a fresh adapter. The average
    itself is lost where its rank exceeds the largest silo's.
    """

    name = "flexlora"
    mixed_ranks = True

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The average update, cut to its leading components."""
        best = leading(stacked(module.updates, module.weights), module.rank)
        return ModuleResult(trained=best)
