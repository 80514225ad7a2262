"""A client model's layers as they were when it was cut: what two parties have in common.

What is done to all of a silo's layers before a trunk is attached was meant for the whole model, and
the trunk's layers have not heard of it.
"""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.errors import ModelError
from flower_split.segments.cuts import Cuts
from flower_split.segments.fingerprint import computing_fields
from flower_split.segments.layers import find_layers
from flower_split.segments.outside import outside_modules
from flower_split.segments.refusals import LONGROPE, rope_types
from flower_split.segments.watching.samples import TensorSample

Parts = Mapping[int, Iterable[tuple[str, nn.Module]]]
"""By the index of a layer, the names and modules of it, without what PEFT has put around them."""

_KINDS = (bool, int, float)
_TOLD = {"p", "training", "gradient_checkpointing"}
"""A rate of dropout, and modes in which a module computes the same."""


def plain_settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes by which a stock module computes, but for its dropout.

    Of quantized modules and other people's the factors alone: they note their own state.
    """
    kinds = _KINDS if type(module).__module__.startswith(("transformers.", "torch.nn.")) else float
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, kinds)
        and "drop" not in name  # of which the trunk is told
        and not name.startswith("_")
        and name not in _TOLD
    }


def shared_buffers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules with buffers that both parties have beside layers, such as rotary frequencies.

    Args:
        model: A client model.
    """
    _, layers = find_layers(model)
    if LONGROPE in rope_types(model.config):  # frequencies of the longest text so far
        return
    ends = {id(m) for _, _, end in outside_modules(model, layers) for m in end.modules()}
    ends |= {id(module) for module in layers.modules()}
    for name, module in model.named_modules():
        if id(module) not in ends and any(True for _ in module.buffers(False)):
            yield name, module


class _Part:
    """A module as it was, without the module."""

    def __init__(self, module: nn.Module) -> None:
        self.kind = type(module)
        self.replaced = "forward" in vars(module)
        self.settings = plain_settings(module)
        self.samples = _samples(module.named_parameters(recurse=False))

    def change(self, module: nn.Module | None, *, values: bool) -> str:
        """What is other in `module`, which stands in its place; empty for nothing."""
        if module is None:
            return "the module"
        if type(module) is not self.kind:
            return "the class"
        now = vars(module)
        if ("forward" in now) is not self.replaced and not hasattr(module, "_hf_hook"):
            return "the method forward"  # accelerate's own only moves weights
        for name, value in self.settings.items():
            if now.get(name) != value:
                return name
        return _other(self.samples, module._parameters) if values else ""


class LayersAsCut:
    """What a client model had as it was cut.

    Args:
        model: The client model, with its weights, before anyone has used it.
        cuts: Which layers the parties hold.
    """

    def __init__(self, model: PreTrainedModel, cuts: Cuts) -> None:
        _, layers = find_layers(model)
        self._count = len(layers)
        self._kinds: defaultdict[str, dict[int, _Part]] = defaultdict(dict)
        for index, layer in enumerate(layers):
            if index not in cuts.trunk_range:
                for name, module in layer.named_modules():
                    self._kinds[name][index] = _Part(module)
        self._buffers = {n: _samples(m.named_buffers("", False)) for n, m in shared_buffers(model)}
        self._config = copy.deepcopy(computing_fields(model.config))

    def check(self, model: PreTrainedModel, parts: Parts, *, begun: Collection[int] = ()) -> None:
        """Raise `ModelError` where the model was changed as only the whole model may be.

        Args:
            model: The client model as it is now.
            parts: Of its own layers.
            begun: Ids of modules that PEFT has taken the beginning of an adapter out of.
        """
        _, layers = find_layers(model)
        if len(layers) != self._count:
            raise ModelError(
                f"the client model has {len(layers)} layers, and had {self._count} when it was "
                "cut: layer_replication and other lists of layers are for the whole model. Make "
                "the model that has them, save it, and cut that one"
            )
        held = {index: dict(named) for index, named in parts.items()}
        for name, kind in self._kinds.items():
            changes = [
                part.change(module := held[index].get(name), values=id(module) not in begun)
                for index, part in kind.items()
            ]
            if all(changes):
                raise _refusal(changes[0], name or "the layer", "in all of the silo's layers")
        for name, module in shared_buffers(model):
            if changed := _other(self._buffers.get(name, {}), module._buffers):
                raise _refusal(changed, name, "at the silo")
        now, was = computing_fields(model.config), self._config
        for key in now.keys() | was.keys():
            if now.get(key) != was.get(key):
                raise _refusal(key, "the client model's config", "at the silo")


def _samples(named: Iterable[tuple[str, Tensor]]) -> dict[str, TensorSample]:
    return {name: TensorSample(tensor).forget_place() for name, tensor in named}


def _other(samples: Mapping[str, TensorSample], now: Mapping[str, Tensor | None]) -> str:
    """The name of a tensor that has other values or is gone; what is offloaded is not looked at."""
    for name, sample in samples.items():
        tensor = now.get(name)
        if tensor is None or (not tensor.is_meta and sample.is_other(tensor)):
            return name
        sample.forget_place()
    return ""


def _refusal(what: str, of: str, where: str) -> ModelError:
    return ModelError(
        f"{what} of {of} was changed {where} after the model was cut, and the trunk's is as it "
        "was. Change the whole model before it is cut, at both ends, or single layers, embeddings "
        "and head; weights that the silo alone trains must require gradients"
    )
