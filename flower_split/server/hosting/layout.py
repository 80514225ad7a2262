"""`RunLayout`: which adapter a run yields, where it starts, and which tensors are the trunk's."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flower_split.adapters import AdapterPlan

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunLayout:
    """What a strategy must know of the model and its adapter; it has no weight of the model."""

    mode: str
    """`federated`, `shared` or `frozen`."""
    plan: AdapterPlan
    """Of the adapter that the run yields: without the trunk's layers when frozen."""
    trunk_names: tuple[str, ...]
    """Names of the adapter tensors that the trunk holds, in model order; none when frozen."""
    either_names: tuple[str, ...] = ()
    """Those of them that a silo holds instead where it chooses to hold more layers."""
    initial: Mapping[str, Tensor]
    """PEFT's own initialisation of every tensor of `plan` from the run's seed, float32."""
    parameters: int
    """Of the uncut model."""

    @property
    def silo_shapes(self) -> dict[str, Shape]:
        """Name and shape of the tensors that silos hold, in model order."""
        held = frozenset(self.trunk_names)
        return {name: shape for name, shape in self.plan.shapes if name not in held}
