"""`SiloAdapter`: the silo's part of a session's adapter, as far as it says which states fit it."""

import math
from dataclasses import dataclass, field

import torch

from flower_split.adapters import SessionState
from flower_split.errors import AdapterError, StateError
from flower_split.lowrank import Instructions, Scaling, adapter_name
from flower_split.optimization.moments import Parameters, check_moments, largest_size


@dataclass(frozen=True, kw_only=True)
class SiloAdapter:
    """What the silo holds of the adapter, and what the strategy asks for."""

    parameters: Parameters
    """By name in the uncut model."""
    scaling: Scaling | None = field(default_factory=lambda: Scaling(r=1, alpha=1.0))
    """None where the method is not plain LoRA."""
    instructions: Instructions = field(default_factory=Instructions)
    max_r: int | None = None
    """Largest rank that the adapter of an earlier session may have had; None for any."""

    @property
    def most_bytes(self) -> float:
        """Bytes of the tensors of a state that fits, at most."""
        if not self.instructions.has_personal:
            return largest_size(self.parameters)
        if self.max_r is None or self.scaling is None:
            return math.inf
        return (1 + 2 * self.max_r // self.scaling.r) * largest_size(self.parameters)

    def check_moments(self, state: SessionState) -> None:
        """Raise `StateError` unless the moments of `state` can be resumed from.

        Those of an adapter of another rank or alpha are not looked at: nobody resumes from them.
        """
        check_moments(self.parameters, state.moments_at(self.scaling))

    def check_personal(self, state: SessionState) -> None:
        """Raise `StateError` unless the personal tensors of `state` are this adapter's.

        They are float32 and finite, and of any rank.
        """
        for name, tensor in state.personal.tensors.items():
            if not self._holds(name) or tensor.dtype != torch.float32:
                raise StateError(
                    f"{name!r} is no float32 tensor of this model's adapter: it is of another "
                    "model, adapter or cut"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise StateError(
                    f"the silo's personal tensor {name} has values that are not finite: the "
                    "training diverged; lower the learning rate"
                )

    def _holds(self, name: str) -> bool:
        """Whether `name` is a tensor of the silo's part, or one that is named after it."""
        try:
            return adapter_name(name) in self.parameters
        except AdapterError:
            return False
