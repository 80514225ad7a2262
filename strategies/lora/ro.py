"""`RoLoRA`: B and A are trained and averaged in alternating rounds.

Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
arXiv:2502.01755.
"""

from flower_split.strategies.lora.fedavg import FedAvgLoRA


class RoLoRA(FedAvgLoRA):
    """Exact: the factor that is not trained is the same for all, as in `FFALoRA`.

    B is trained in odd rounds, A in even ones; B first, as A has no gradient while B is zero.
    """

    name = "rolora"
    embeddings = False

    def trained_parts(self, server_round: int) -> frozenset[str]:
        """Only B is trained in odd rounds, and only A in even ones."""
        return frozenset("B" if server_round % 2 else "A")
