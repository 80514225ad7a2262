"""`FedSALoRA`: A is averaged, and every silo has a B of its own.

Guo et al. 2024, "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
arXiv:2410.01463.
"""

from flower_split.strategies.lora.fedavg import FedAvgLoRA


class FedSALoRA(FedAvgLoRA):
    """Both factors are trained; A is averaged, B never leaves the silo.

    There is no global model: the B in the arrays that the server holds stays as it was at the
    start. What a silo has learned is its own B with the common A.
    """

    name = "fedsalora"
    embeddings = False

    def personal_parts(self) -> frozenset[str]:
        """B, which is every silo's own; A is sent."""
        return frozenset("B")
