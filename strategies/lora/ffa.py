"""`FFALoRA`: A is frozen as it was drawn, and only B is trained and averaged.

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", arXiv:2403.12313.
"""

from flower_split.strategies.lora.fedavg import FedAvgLoRA


class FFALoRA(FedAvgLoRA):
    """Exact: with one A for all, Σ w_i s B_i A = s (Σ w_i B_i) A.

    Half as many bytes go up, half as many values are trained.
    """

    name = "ffalora"
    embeddings = False

    def trained_parts(self, server_round: int) -> frozenset[str]:
        """Only B is trained; A stays as it was drawn."""
        return frozenset("B")
