"""What a session may leave in the model that it has borrowed, and what it may not."""

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from flower_split.adapters import adapter_parameters
from flower_split.adapters.client_adapter import told, tuner_layers
from flower_split.errors import AdapterError
from flower_split.lowrank import FOLDED
from flower_split.segments import PassThrough


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelTraces:
    """How a client model computes, but for the values of its adapter and for its trunk."""

    weights: dict[str, nn.Parameter]
    """All that is neither the session's adapter nor a folded one."""
    trained: frozenset[str]
    """Names of those that require gradients."""
    layers: dict[str, tuple[Any, ...]]
    """What PEFT was told of every layer with an adapter."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Those of `model` as it is now."""
        places = [name for name, part in model.named_modules() if isinstance(part, PassThrough)]
        own = {id(parameter) for _, parameter in adapter_parameters(model)}
        weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if id(parameter) not in own
            and f".{FOLDED}" not in name
            and not name.startswith(tuple(f"{place}." for place in places))
        }
        return cls(
            weights=weights,
            trained=frozenset(name for name, one in weights.items() if one.requires_grad),
            layers={name: told(layer, besides=FOLDED) for name, layer in tuner_layers(model)},
        )

    def is_as(self, begun: "ModelTraces") -> bool:
        """Whether the next session finds the model as this one found it."""
        return (
            self.weights.keys() == begun.weights.keys()
            and all(one is begun.weights[name] for name, one in self.weights.items())
            and self.trained == begun.trained
            and self.layers == begun.layers
        )

    def check_sent(self, begun: "ModelTraces") -> None:
        """Raise `AdapterError` where something was trained that goes to nobody."""
        lost = sorted(
            name
            for name, one in begun.weights.items()
            if (name in self.trained and name not in begun.trained)
            or self.weights.get(name) is not one
        )
        if lost:
            raise AdapterError(
                f"{len(lost)} tensors of session.model that are not in the run's adapter (first: "
                f"{lost[0]}) were set free by requires_grad, or replaced: a reply carries the "
                "adapter alone, and what they have learned would be lost. Leave them frozen, or "
                "name their modules in peft.modules-to-save"
            )
