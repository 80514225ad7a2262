"""What is done to the silo's layers and the stand-ins, and would be done to the trunk's as well."""

from collections import defaultdict
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters.client_adapter import tuner_layers
from flower_split.adapters.state import adapter_parameters
from flower_split.errors import AdapterError, ModelError
from flower_split.privacy.row_gradients import RowHook
from flower_split.segments import find_layers, layer_index
from flower_split.transport.messages import SessionSpec

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Kinds of hooks of a module, as torch calls the attributes that hold them."""


def check_hooks(layers: nn.ModuleList, spec: SessionSpec) -> None:
    """Raise `ModelError` where a hook waits on a stand-in for what the stand-in does not see.

    The first is given the trunk's input, and the last returns its output; nothing else is real.

    Args:
        layers: The client model's.
        spec: The session's.
    """
    first, last = spec.bottom_layers, spec.num_layers - spec.top_layers - 1
    for index in range(first, last + 1):
        for name, module in layers[index].named_modules():
            kinds = [kind for kind in HOOKS if hooks(module, kind)]
            if not name and index == first:
                kinds = [kind for kind in kinds if kind != "_forward_pre_hooks"]
            if not name and index == last:
                kinds = [kind for kind in kinds if kind != "_forward_hooks"]
            if kinds:
                place = f"{index}.{name}" if name else str(index)
                raise ModelError(
                    f"layer {place} has a hook ({kinds[0].strip('_')}), and it is one of the "
                    f"trunk's, {first} to {last}, which are not in this model. Hooks work on the "
                    f"silo's layers, before layer {first}, and after layer {last}"
                )


def check_frozen(model: PreTrainedModel, spec: SessionSpec) -> None:
    """Raise `AdapterError` where weights of all of the silo's layers are trained beside an adapter.

    Whoever sets a kind of weights free means those of all layers, and the trunk's stay frozen.

    Args:
        model: The client model.
        spec: The session's.
    """
    if spec.trunk_adapters == "frozen" or not tuner_layers(model):
        return
    adapters: Any = getattr(model, "peft_config", {})
    own = {id(tensor) for name in adapters for _, tensor in adapter_parameters(model, name)}
    path, _ = find_layers(model)
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    trunk = range(spec.bottom_layers, spec.num_layers - spec.top_layers)
    for name, parameter in model.named_parameters():
        index = layer_index(name, path)
        if index is not None and index not in trunk and id(parameter) not in own:
            kinds[name.partition(f"{path}.{index}.")[2]].append(parameter.requires_grad)
    free = sorted(kind for kind, found in kinds.items() if all(found))
    if free:
        raise AdapterError(
            f"{free[0]} (one of {len(free)}) requires gradients in all of the silo's layers, and "
            "stays frozen in the trunk's, which train their adapter alone. Freeze it with "
            "requires_grad_(False); embeddings, the head and single layers may be set free"
        )


def hooks(module: nn.Module, kind: str) -> list[Any]:
    """The module's hooks of one of `HOOKS` but PEFT's own, and those of DP-SGD, which the trunk's
    layers have too.

    PEFT's are by which it hands the arguments of a pass over to adapters, and by which the starts
    of an adapter (EVA, CorDA, LoRA-GA) look at what goes through the silo's modules.
    """
    return [
        hook
        for hook in getattr(module, kind).values()
        if not (_is_pefts(hook) or isinstance(hook, RowHook))
    ]


_HANDED_OVER = ("adapter_names", "alora_offsets")
_STARTS = tuple(f"peft.tuners.lora.{name}" for name in ("eva", "corda", "loraga"))


def _is_pefts(hook: Any) -> bool:
    if isinstance(hook, partial):
        return any(name in hook.keywords for name in _HANDED_OVER) or _is_pefts(hook.func)
    return str(getattr(hook, "__module__", "")).startswith(_STARTS)
