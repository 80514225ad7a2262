"""Using a trained adapter through the split: each party loads its part of one PEFT folder."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, overload

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from flower_split.adapters.reading import CONFIG, TENSORS
from flower_split.errors import AdapterError
from flower_split.segments import PassThrough, Trunk, TrunkSlot

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
    stock = part.model if isinstance(part, Trunk) else part
    if isinstance(part, PeftModel) or hasattr(stock, "peft_config"):
        raise AdapterError("the model has an adapter already: load into one that has none")
    if isinstance(part, Trunk):
        if not config.is_prompt_learning:
            wrapped = _wrapped(stock, folder)
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
    client = _wrapped(stock, folder)
    for module in stock.modules():
        if isinstance(module, PassThrough):
            module.take_given()  # the trunk's owner loads the trunk's part
    slot.loaded_adapter = digest
    return client


def _wrapped(stock: PreTrainedModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        try:
            return PeftModel.from_pretrained(stock, str(folder)).eval()
        except (ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
            raise AdapterError(
                f"the adapter in {folder} does not fit the model: {error}"
            ) from error


def _read(folder: Path) -> tuple[PeftConfig, str]:
    try:
        values: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        common = {name: value for name, value in values.items() if name not in _ELSEWHERE}
        text = json.dumps(common, sort_keys=True).encode()
        digest = hashlib.sha256(text + (folder / TENSORS).read_bytes()).hexdigest()
        return PeftConfig.from_pretrained(str(folder)), digest
    except FileNotFoundError as error:
        raise AdapterError(
            f"{folder} is no PEFT folder, which has {CONFIG} and {TENSORS}"
        ) from error
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError(f"{folder} holds no adapter that can be read: {error}") from error
