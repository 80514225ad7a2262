"""Reading a standard PEFT folder back, with the scale of every module put into its tensors."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flower_split.adapters.plan import PEFT_PREFIX
from flower_split.adapters.state import is_general
from flower_split.errors import AdapterError
from flower_split.lowrank import Factors, Scaling, pair_up

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_HARMLESS = (True, False, "gaussian", "orthogonal")
"""Initialisations after which the factors' product is the whole update of the model."""


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """What is in a PEFT folder."""

    state: dict[str, Tensor]
    """Named as PEFT names them; of LoRA factors and nothing else, the plain product of a module's
    two is its whole update."""
    base_model: str
    fan_in_fan_out: bool
    plain: bool = True
    """Whether these are LoRA factors and nothing else."""


def read_adapter_folder(folder: Path) -> AdapterFolder:
    """The adapter in `folder`, as `save_adapter`, `save_whole` or PEFT itself wrote it.

    Raises:
        AdapterError: there is none, or none of its method's tensors in safetensors.
    """
    try:
        values: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        method = values.get("peft_type")
        if method != "LORA":
            return _of_another_method(folder, str(method))
        config = LoraConfig.from_pretrained(str(folder))
        state = load_file(folder / TENSORS)
        # Another one may have taken what the adapter begins with out of the model's weights.
        plain = not is_general(config) and config.init_lora_weights in _HARMLESS
        return AdapterFolder(
            state=_at_scale_one(state, config) if plain else state,
            base_model=config.base_model_name_or_path or "",
            fan_in_fan_out=config.fan_in_fan_out,
            plain=plain,
        )
    except AdapterError:
        raise
    except FileNotFoundError as error:
        raise AdapterError(
            f"{folder} is no PEFT folder, which has {CONFIG} and {TENSORS}"
        ) from error
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError(f"{folder} holds no adapter that can be read: {error}") from error


def copy_adapter_folder(folder: Path, out: Path) -> None:
    """Copy the adapter in `folder` as it is.

    Raises:
        OSError: it cannot be read or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, TENSORS):
        shutil.copyfile(folder / name, out / name)


def _of_another_method(folder: Path, method: str) -> AdapterFolder:
    known = {kind.value: prefix for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items()}
    state = load_file(folder / TENSORS) if method in known else {}
    if not any(known[method] in name for name in state):
        raise AdapterError(
            f"{folder} holds a {method}, expected a LORA or tensors of another method of PEFT's"
        )
    config = PeftConfig.from_pretrained(str(folder))
    return AdapterFolder(
        state=state,
        base_model=config.base_model_name_or_path or "",
        fan_in_fan_out=bool(getattr(config, "fan_in_fan_out", False)),
        plain=False,
    )


def _at_scale_one(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    whole = dict[str, Tensor]()
    for pair in pair_up(state):
        scaling = _scaling(config, pair.module.removeprefix(PEFT_PREFIX))
        factors = Factors(a=state[pair.a], b=state[pair.b], scale=scaling.factor).at_scale(1.0)
        whole |= {pair.a: factors.a, pair.b: factors.b}
    return whole


def _scaling(config: LoraConfig, module: str) -> Scaling:
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    return Scaling(
        r=ranks.get(get_pattern_key(list(ranks), module), config.r),
        alpha=float(alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)),
        rslora=bool(config.use_rslora),
    )
