"""What a session leaves in the silo for the next one: moments, and what the strategy keeps there.

In a file the tensors that are kept have the prefix `kept:`, those of the optimizer have none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flower_split.adapters import Kept
from flower_split.errors import AdapterError, StateError
from flower_split.lowrank import (
    Instructions,
    Scaling,
    adapter_name,
    scaling_fields,
    scaling_from_fields,
)
from flower_split.optimization.moments import Parameters, check_moments, largest_size

PREFIX = "kept:"
_SCALING = "scaling"


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionState:
    """The silo's half of what one session left."""

    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """See `flower_split.optimization.moments`."""
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, kw_only=True)
class SiloAdapter:
    """The adapter of a session, as far as it says which states fit it."""

    parameters: Parameters
    """What the silo holds of it, by name."""
    scaling: Scaling = field(default_factory=lambda: Scaling(r=1, alpha=1.0))
    instructions: Instructions = field(default_factory=Instructions)
    max_r: int = 1
    """Largest rank that the adapter of an earlier session may have had."""

    @property
    def most_bytes(self) -> int:
        """Bytes of the tensors of a state that fits, at most."""
        growth = 1 + 2 * self.max_r // self.scaling.r if self.instructions.keeps_something else 1
        return growth * largest_size(self.parameters)

    def packed(self, left: SessionState) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Facts and tensors of `left` for a file.

        Raises:
            StateError: the moments are not those of this adapter, or not finite.
        """
        check_moments(self.parameters, left.moments)
        facts = {_SCALING: json.dumps(scaling_fields(self.scaling))}
        kept = {PREFIX + name: tensor for name, tensor in left.kept.tensors.items()}
        return facts, {**left.moments, **kept}

    def unpacked(self, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> SessionState:
        """The state in a file; what is in the file is not trusted.

        Moments of an adapter of another rank or alpha are left out: the optimizer starts afresh
        then, on both sides of the cut.

        Raises:
            StateError: it is no state of this adapter.
        """
        kept = unpacked_kept(facts, tensors)
        moments = {name: t for name, t in tensors.items() if not name.startswith(PREFIX)}
        if _scaling(facts) == self.scaling:
            check_moments(self.parameters, moments)
        else:
            moments = {}
        for name, tensor in kept.tensors.items():
            self._check_kept(name, tensor)
        return SessionState(moments=moments, kept=kept)

    def _check_kept(self, name: str, tensor: Tensor) -> None:
        try:
            known = adapter_name(name) in self.parameters
        except AdapterError:
            known = False
        if not known or tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise StateError(
                f"{name!r} in it is no finite float32 tensor of this model's adapter; it was kept "
                "for another model, adapter or cut"
            )


def unpacked_kept(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Kept:
    """What the silo alone has, of what is in a file.

    Raises:
        StateError: the file does not say how it is scaled.
    """
    kept = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    return Kept(tensors=kept, scale=_scaling(facts).factor)


def _scaling(facts: Mapping[str, str]) -> Scaling:
    try:
        return scaling_from_fields(json.loads(facts[_SCALING]))
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise StateError("it does not say of which rank and alpha it is") from error
