"""`MedianLoRA`: the element-wise median of A and of B, shrunk a little."""

from typing import Any

import torch

from flower_split.lowrank import Factors
from flower_split.strategies import LoraStrategy, ModuleResult, ModuleRound


class MedianLoRA(LoraStrategy):
    """A robust baseline: one silo of three cannot pull the aggregate away.

    Args:
        shrink: Factor that B is multiplied with, from 0 to 1.
        **lora: Arguments of `LoraStrategy`.
    """

    name = "medianlora"

    def __init__(self, *, shrink: float = 1.0, **lora: Any) -> None:
        super().__init__(**lora)
        self.shrink = shrink

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The medians, at the scale that all updates have here."""
        a = torch.stack([update.a for update in module.updates]).median(dim=0).values
        b = torch.stack([update.b for update in module.updates]).median(dim=0).values
        return ModuleResult(trained=Factors(a=a, b=self.shrink * b, scale=module.before.scale))
