"""`ScaffoldLoRA`: A and B averaged apart, with SCAFFOLD's control variates against client drift.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
arXiv:1910.06378.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from flower_split.lowrank import CONTROL, Instructions, Scaling
from flower_split.strategies.lora.fedavg import FedAvgLoRA
from flower_split.strategies.lora.replies import SiloReply


class ScaffoldLoRA(FedAvgLoRA):
    """A silo steps by its gradient g - c_i + c, where c_i and c are its and the global drift.

    After its round a silo's c_i becomes the mean of the gradients that it has seen. That is the
    paper's option II when the silo's optimizer is SGD, and unlike it has a meaning for AdamW,
    whose steps are no gradients. `c += |S| / N Σ w_i Δc_i` over the sampled silos S of N; the
    paper's weights are equal, here they are those of the adapters, as the corrections c - c_i of
    all silos must cancel in the average. Adapters and control variates travel both ways: twice the
    bytes.
    """

    name = "scaffoldlora"
    mixed_alphas = False

    def __init__(self, **lora: Any) -> None:
        super().__init__(**lora)
        self.control: dict[str, Tensor] = {}
        """c by name of the adapter tensor; zero before the first round."""
        self._num_silos = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """As the base class; counts the silos that there are."""
        self._num_silos = len(list(grid.get_node_ids()))
        return super().configure_train(server_round, arrays, config, grid)

    @property
    def returns_what_it_sends(self) -> bool:
        """False, as silos send the change of their control variates."""
        return False

    def instructions(self, server_round: int, node: Scaling | None) -> Instructions:
        """What the base class tells a silo, and that control variates come and are sent back."""
        return replace(super().instructions(server_round, node), controlled=True)

    def misfit(self, silos: Collection[Scaling]) -> str:
        """As the base class; nor may silos differ in their scale, and so in what a gradient is."""
        scales = {silo.factor for silo in silos}
        if scales <= {self.scaling.factor}:
            return super().misfit(silos)
        return super().misfit(silos) or (
            f"silos scale their adapters by {sorted(scales)}, and {self.name} needs "
            f"{self.scaling.factor:g} everywhere, as control variates are gradients: give all "
            "silos the same lora.alpha, or use strategy.name 'fedavglora' or 'fedexlora'"
        )

    def sent_names(self, server_round: int) -> list[str]:
        """Every trained tensor and its control variate's change."""
        names = super().sent_names(server_round)
        return names + [CONTROL + name for name in names]

    def fitted(self, node: Scaling | None, server_round: int) -> dict[str, Tensor]:
        """As the base class, with c beside every tensor."""
        factors = self.adapter.names
        return super().fitted(node, server_round) | {
            CONTROL + name: self.control.get(name, torch.zeros_like(self.adapter.state[name]))
            for name in factors
        }

    def aggregated(self, server_round: int, counted: Sequence[SiloReply]) -> dict[str, Tensor]:
        """As the base class; c follows the silos' changes."""
        total = sum(reply.weight for reply in counted)
        share = len(counted) / max(self._num_silos, len(counted))
        for name in self.adapter.names:
            change = sum(
                (reply.tensor(CONTROL + name) * (reply.weight / total) for reply in counted),
                torch.zeros_like(self.adapter.state[name], dtype=torch.float64),
            )
            before = self.control.get(name, torch.zeros_like(self.adapter.state[name])).double()
            self.control[name] = (before + share * change).float()
        return super().aggregated(server_round, counted)
