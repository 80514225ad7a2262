"""`HetLoRA`: adapters of mixed ranks zero-padded, averaged apart, and cut to each silo's rank.

Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
arXiv:2401.06432.
"""

import math
from typing import Any

from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.fedavg import factors_averaged_apart
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


class HetLoRA(LoraStrategy):
    """Sparsity-weighted averages of zero-padded factors; not exact.

    A = Σ p_i [A_i; 0] and B = Σ p_i [B_i 0] with p_i = ‖s_i B_i A_i‖ / Σ_j ‖s_j B_j A_j‖ (Frobenius
    norms, from Gram matrices). A silo gets the first r_i components. The paper does not say whether
    its weights belong to the model or to each module: here they are the module's. They take the
    place of the numbers of examples, as in the paper.

    Left out is the paper's rank self-pruning (a penalty on the last components in the silos' loss,
    and a smaller rank once they have shrunk): here a silo's rank is its own setting. A silo that
    lowers it between two rounds is served accordingly.

    Args:
        sparsity_weights: False weighs by the numbers of examples instead.
        **lora: Arguments of `LoraStrategy`.
    """

    name = "hetlora"
    mixed_ranks = True

    def __init__(self, *, sparsity_weights: bool = True, **lora: Any) -> None:
        super().__init__(**lora)
        self.sparsity_weights = sparsity_weights

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The padded factors, averaged apart by the sparsity weights."""
        weights = module.weights
        if self.sparsity_weights:
            norms = [update.norm() for update in module.updates]
            total = math.fsum(norms)
            # All updates are zero in a module that has not been trained yet.
            weights = [norm / total for norm in norms] if total > 0 else weights
        padded = [update.zero_padded(module.rank) for update in module.updates]
        return ModuleResult(trained=factors_averaged_apart(zip(weights, padded, strict=True)))
