"""`FLoRA`: the silos' adapters stacked and folded into the model, which then gets a fresh one.

Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", arXiv:2409.05976.
"""

from typing import Any

import torch

from flower_split.config.seeds import derive_seed
from flower_split.lowrank import fresh_factors, recompressed, stacked
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


class FLoRA(LoraStrategy):
    """Exact, for any mixture of ranks and alphas.

    B = [s_1 B_1 … s_k B_k] and A = [w_1 A_1; …; w_k A_k] give the module's update B A = Σ w_i s_i
    B_i A_i, which joins the frozen adapter `folded`; the next round starts from fresh factors
    (random A, zero B). The paper multiplies A with the weight and leaves the scaling alpha / r to
    the layer; with mixed ranks it is the silo's own, and so part of the stack here.

    Args:
        seed: Of the fresh factors.
        **lora: Arguments of `LoraStrategy`.
    """

    name = "flora"
    mixed_ranks = True
    folds = True

    def __init__(self, *, seed: int = 0, **lora: Any) -> None:
        super().__init__(**lora)
        self.seed = seed

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """All updates folded, and fresh factors of the largest rank."""
        update = stacked(module.updates, module.weights)
        if module.folded is not None:
            update = stacked([module.folded, update], [1.0, 1.0])
        seed = derive_seed(self.seed, "flora", module.server_round, module.pair.module)
        fresh = fresh_factors(
            module.rank,
            module.before.a.shape[1],
            module.before.b.shape[0],
            generator=torch.Generator().manual_seed(seed),
            embedding=module.pair.embedding,
            scale=module.before.scale,
        )
        return ModuleResult(trained=fresh, folded=recompressed(update))
