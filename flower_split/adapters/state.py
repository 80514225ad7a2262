"""Adapter state: the named tensors of an adapter, as in PEFT's `adapter_model.safetensors`.

Names are those of the uncut model whichever party holds the tensor, values are float32, and the
order is the order of the uncut model's parameters.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn

from flower_split.adapters import methods
from flower_split.adapters.plan import ADAPTER, PEFT_PREFIX
from flower_split.adapters.prompts import is_frozen, is_prompt, prompt_tensors
from flower_split.errors import AdapterError
from flower_split.segments import Cuts, PassThrough, layer_index

_PREFIXES = tuple(sorted({*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "modules_to_save"}))


def is_adapters(name: str) -> bool:
    """Whether a tensor of that name is an adapter's, of whatever method, and no weight."""
    return any(part.startswith(_PREFIXES) for part in name.split("."))


def adapter_parameters(
    model: nn.Module, adapter: str = ADAPTER
) -> Iterator[tuple[str, nn.Parameter]]:
    """Name in the uncut model and parameter of what is trained of `adapter`, in model order."""
    if _has_general(model, adapter):
        for name, tensor in adapter_tensors(model, adapter).items():
            if isinstance(tensor, nn.Parameter) and not is_frozen(name):
                yield name, tensor
        return
    marker = f".{adapter}"
    for name, parameter in model.named_parameters():
        head, found, tail = name.rpartition(marker)
        if found and "lora_" in head and tail in ("", ".weight"):
            yield PEFT_PREFIX + head.removeprefix(PEFT_PREFIX) + tail, parameter


def adapter_tensors(model: nn.Module, adapter: str = ADAPTER) -> dict[str, Tensor]:
    """Every tensor of `adapter` that PEFT saves, in model order.

    Those of `adapter_parameters`, and with some methods buffers among them, which are not trained.

    Raises:
        AdapterError: what PEFT saves is not what the model holds.
    """
    if is_prompt(_config_of(model, adapter)):
        return dict[str, Tensor](prompt_tensors(model, adapter))
    if not _has_general(model, adapter):
        return dict(adapter_parameters(model, adapter))
    held = dict(_held(model))
    inner = not isinstance(model, PeftModel)  # the stock model, with PEFT's layers in it
    places = {id(tensor): place for place, tensor in enumerate(held.values())}
    saved: dict[str, Tensor] = get_peft_model_state_dict(
        model,
        state_dict=held,
        adapter_name=adapter,
        save_embedding_layers=False,
    )
    made = [name for name, tensor in saved.items() if id(tensor) not in places]
    if made:
        raise AdapterError(
            f"PEFT computes {made[0]} as it saves an adapter, and holds no such tensor to train"
        )
    return {
        (PEFT_PREFIX + name if inner else name): tensor
        for name, tensor in sorted(saved.items(), key=lambda item: places[id(item[1])])
    }


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint of `model` by its name, itself and no copy.

    Not by `state_dict`, for which a client model asks its trunk.
    """
    passed = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, PassThrough))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(passed):
            yield name, parameter
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and not path.startswith(passed):
                yield f"{path}.{name}", buffer


def _config_of(model: nn.Module, adapter: str) -> Any:
    return getattr(model, "peft_config", {}).get(adapter)


def _has_general(model: nn.Module, adapter: str) -> bool:
    config = _config_of(model, adapter)
    if config is None or config.peft_type.value in methods.REFUSED:
        return False
    return is_general(config)


def is_general(config: PeftConfig) -> bool:
    """Whether an adapter of `config` has other tensors than the two factors of each module."""
    return not (
        type(config) in (LoraConfig, AdaLoraConfig)
        and isinstance(config, LoraConfig)
        and config.bias == "none"
        and not (config.use_dora or config.lora_bias)
        and not (config.modules_to_save or config.trainable_token_indices)
    )


def weights_dtype(model: nn.Module, adapter: str = ADAPTER) -> torch.dtype:
    """dtype of the weights of `model`, which its adapter's tensors need not have."""
    return next(
        parameter.dtype
        for name, parameter in model.named_parameters()
        if f".{adapter}" not in name and parameter.is_floating_point()
    )


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
        name: tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in adapter_tensors(model, adapter).items()
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor], adapter: str = ADAPTER) -> None:
    """Copy `state` into `adapter` of `model`; nothing is changed when it does not fit.

    Raises:
        AdapterError: names or shapes differ from the model's, or a value is not finite.
    """
    held = adapter_tensors(model, adapter)
    check_state(state, {name: tuple(tensor.shape) for name, tensor in held.items()})
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(state[name])


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
