"""Adapter state: the named tensors of an adapter, as in PEFT's `adapter_model.safetensors`.

Names are those of the uncut model whichever party holds the tensor, values are float32, and the
order is the order of the uncut model's parameters.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from flower_split.adapters.plan import ADAPTER, PEFT_PREFIX
from flower_split.errors import AdapterError
from flower_split.segments import Cuts, layer_index


def adapter_parameters(
    model: nn.Module, adapter: str = ADAPTER
) -> Iterator[tuple[str, nn.Parameter]]:
    """Name in the uncut model and parameter of every tensor of `adapter`, in model order."""
    marker = f".{adapter}"
    for name, parameter in model.named_parameters():
        head, found, tail = name.rpartition(marker)
        if found and "lora_" in head and tail in ("", ".weight"):
            yield PEFT_PREFIX + head.removeprefix(PEFT_PREFIX) + tail, parameter


def with_adapter(name: str, adapter: str = ADAPTER) -> str:
    """The name of an adapter tensor in a model, for its name in the adapter's file."""
    head, weight = name.removesuffix(".weight"), name.endswith(".weight")
    return f"{head}.{adapter}" + (".weight" if weight else "")


def without_adapter(name: str, adapter: str = ADAPTER) -> str:
    """The name of an adapter tensor in the adapter's file, for its name in a model."""
    head, found, tail = name.rpartition(f".{adapter}")
    return head + tail if found and tail in ("", ".weight") else name


def read_state(model: nn.Module, adapter: str = ADAPTER) -> dict[str, Tensor]:
    """A float32 CPU copy of every tensor of `adapter` that `model` holds."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in adapter_parameters(model, adapter)
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor], adapter: str = ADAPTER) -> None:
    """Copy `state` into `adapter` of `model`; nothing is changed when it does not fit.

    Raises:
        AdapterError: names or shapes differ from the model's, or a value is not finite.
    """
    held = dict(adapter_parameters(model, adapter))
    check_state(state, {name: tuple(parameter.shape) for name, parameter in held.items()})
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(state[name])


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `AdapterError` unless `state` has exactly the tensors of `shapes`, all finite."""
    missing, unknown = shapes.keys() - state.keys(), state.keys() - shapes.keys()
    if missing or unknown:
        raise AdapterError(
            f"adapter tensors do not fit: {len(missing)} missing{_first(missing)}, "
            f"{len(unknown)} unknown{_first(unknown)}. Use the adapter settings and cuts it was "
            "made with"
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise AdapterError(
                f"adapter tensor {name} has shape {tuple(state[name].shape)}, expected {shape}"
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise AdapterError(
                f"adapter tensor {name} has values that are not finite: the training diverged; "
                "lower the learning rate"
            )


def split_state(
    state: Mapping[str, Tensor], layers_path: str, cuts: Cuts
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The silo's part and the trunk's part of a whole adapter, each in the order of `state`."""
    client: dict[str, Tensor] = {}
    trunk: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = trunk if layer_index(name, layers_path) in cuts.trunk_range else client
        part[name] = tensor
    return client, trunk


def _first(names: set[str]) -> str:
    return f" (first: {min(names)})" if names else ""
