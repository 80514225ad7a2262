"""Using a trained adapter through the split: each party loads its part of one PEFT folder."""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, overload

from peft import AdaLoraConfig, PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from flower_split.adapters.reading import CONFIG, TENSORS, no_adapter
from flower_split.errors import AdapterError
from flower_split.segments import (
    PassThrough,
    Stub,
    Trunk,
    TrunkSlot,
    held_by_trunk,
    layer_index,
    layers_path,
)
from flower_split.text_tables import read_json

_ELSEWHERE = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type"}
"""Settings that are no part of what an adapter computes."""


@overload
def load_adapter(part: PreTrainedModel, folder: Path | str) -> PeftModel: ...
@overload
def load_adapter(part: Trunk, folder: Path | str) -> Trunk: ...
def load_adapter(part: PreTrainedModel | Trunk, folder: Path | str) -> PeftModel | Trunk:
    """One party's part of the adapter in `folder`, to compute with and not to train.

    Both parties load the same folder: the handshake of a session compares what they have loaded.

    Args:
        part: A client model that no trunk is attached to yet, or a trunk that no engine hosts yet.
        folder: A PEFT folder, as `flower-split export` or PEFT itself wrote it.

    Returns:
        The client model as PEFT wraps it, or the trunk itself.

    Raises:
        AdapterError: there is no adapter in `folder`, it is of a method that a cut model cannot
            use, or the part has an adapter already.
    """
    folder = Path(folder)
    config, digest = _read(folder)
    if isinstance(config, AdaLoraConfig) and config.rank_pattern:
        raise AdapterError(
            f"the AdaLoRA adapter in {folder} was cut to its ranks by PEFT (rank_pattern), which "
            "PEFT loads into a whole model only: use it there. What a run of flower_split exports "
            "has its masked triplets as zeros, and is loaded into a cut model too"
        )
    stock = part.model if isinstance(part, Trunk) else part
    if isinstance(part, PeftModel) or hasattr(stock, "peft_config"):
        raise AdapterError("the model has an adapter already: load into one that has none")
    if isinstance(part, Trunk):
        _check_layers(folder, stock, part.cuts.num_layers)
        if _reaches(part, folder):
            _leave_stubs_out(config, stock)
            wrapped = _wrapped(stock, folder, config)
            part.without_adapter = wrapped.disable_adapter
        part.loaded_adapter = digest
        part.requires_grad_(False)
        return part
    slot = next((m for m in stock.modules() if isinstance(m, TrunkSlot)), None)
    if slot is None:
        raise AdapterError(
            "load_adapter takes a client model of split_model or load_client_model before "
            "attach_trunk, or a trunk"
        )
    _check_layers(folder, stock, slot.cuts.num_layers)
    client = _wrapped(stock, folder, config)
    for module in stock.modules():
        if isinstance(module, PassThrough):
            module.take_given()  # the trunk's owner loads the trunk's part
    slot.loaded_adapter = digest
    return client


def _check_layers(folder: Path, stock: PreTrainedModel, layers: int) -> None:
    """Raise `AdapterError` where it has layers that the model has not: PEFT passes over them."""
    path = layers_path(stock)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            found = [(layer_index(name, path) or 0, name) for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"the adapter in {folder} cannot be read: {error}") from error
    last, name = max(found, default=(0, ""))
    if last >= layers:
        raise AdapterError(
            f"the adapter in {folder} does not fit the model, which has {layers} layers: it has "
            f"{name!r}. Load it into the model that it was trained on"
        )


def _reaches(trunk: Trunk, folder: Path) -> bool:
    """Whether a tensor of the adapter belongs to one of the trunk's layers."""
    path = layers_path(trunk.model)
    with safe_open(folder / TENSORS, framework="pt") as file:
        return any(held_by_trunk(name, path, trunk.cuts) for name in file.keys())  # noqa: SIM118


def _leave_stubs_out(config: Any, trunk: PreTrainedModel) -> None:
    """Have PEFT pass over embeddings and head, which are the silo's and stubs in the trunk."""
    stubs = [name for name, module in trunk.named_modules() if isinstance(module, Stub)]
    given = getattr(config, "exclude_modules", None) or []
    if isinstance(given, str):
        config.exclude_modules = "|".join([f"(?:{given})", *map(re.escape, stubs)])
    else:
        config.exclude_modules = [*given, *stubs]
    kept = [
        name
        for name in getattr(config, "modules_to_save", None) or []
        if not any(stub == name or stub.endswith(f".{name}") for stub in stubs)
    ]
    config.modules_to_save = kept or None
    if hasattr(config, "trainable_token_indices"):
        config.trainable_token_indices = None


def _wrapped(stock: PreTrainedModel, folder: Path, config: PeftConfig) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        try:
            return PeftModel.from_pretrained(stock, str(folder), config=config).eval()
        except (
            *(ValueError, TypeError, RuntimeError, KeyError, AttributeError),
            SafetensorError,
        ) as error:
            raise AdapterError(
                f"the adapter in {folder} does not fit the model: {error}"
            ) from error


def _read(folder: Path) -> tuple[PeftConfig, str]:
    try:
        values: dict[str, Any] = read_json((folder / CONFIG).read_bytes())
        common = {name: value for name, value in values.items() if name not in _ELSEWHERE}
        text = json.dumps(common, sort_keys=True).encode()
        digest = hashlib.sha256(text + (folder / TENSORS).read_bytes()).hexdigest()
        return PeftConfig.from_pretrained(str(folder)), digest
    except FileNotFoundError as error:
        raise no_adapter(folder) from error
    except KeyError as error:
        raise AdapterError(
            f"the installed PEFT has no method {error} for the adapter in {folder}"
        ) from error
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError(f"{folder} holds no adapter that can be read: {error}") from error
