"""`SessionState`: what one session leaves for the next one, at either end of the cut.

The two ends of a session each have their half of it, on the layers that they hold. In a model that
is not cut there is one half, and it is the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_split.lowrank import Scaling


@dataclass(frozen=True, kw_only=True, eq=False)
class PersonalTensors:
    """Tensors that belong to one silo alone and are in no reply, float32."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Adapter tensors, and the silo's own control variates under their prefixed names."""
    scale: float = 1.0
    """Factor of the product of the adapter tensors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionState:
    """One half of what a session leaves."""

    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """The optimizer's state, see `flower_split.optimization.moments`."""
    personal: PersonalTensors = field(default_factory=PersonalTensors)
    scaling: Scaling | None = None
    """Of the silo's adapter in that session; None where it is not known."""

    def moments_at(self, scaling: Scaling | None) -> Mapping[str, Tensor]:
        """The moments for an adapter of `scaling`.

        None for one of another rank or alpha: its optimizer starts afresh, on both sides of the
        cut. Personal tensors are fitted to the new rank, see `flower_split.adapters.fitted`.
        """
        return self.moments if self.scaling == scaling else {}
