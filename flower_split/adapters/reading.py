"""Reading a standard PEFT folder back, with the scale of every module put into its tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flower_split.adapters.plan import PEFT_PREFIX
from flower_split.errors import AdapterError
from flower_split.lowrank import Factors, Scaling, pair_up
from flower_split.text_tables import read_json

_OF_PLAIN_LORA = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_INITS = (True, "gaussian", "orthogonal", "eva")  # that leave the base weights as they are

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """What is in a PEFT folder with a LoRA adapter."""

    state: dict[str, Tensor]
    """Named as PEFT names them; the plain product of a module's two is its whole update."""
    base_model: str
    fan_in_fan_out: bool
    task_type: str | None
    """PEFT's name of the task; None where it has none."""


def read_adapter_folder(folder: Path) -> AdapterFolder:
    """The adapter in `folder`, as `save_adapter`, `save_whole` or PEFT itself wrote it.

    Raises:
        AdapterError: there is none, or none of LoRA factors in safetensors alone.
    """
    try:
        values: dict[str, Any] = read_json((folder / CONFIG).read_bytes())
        if values.get("peft_type") != "LORA":
            raise AdapterError(
                f"{folder} holds a {values.get('peft_type')}, expected a LORA: use it with PEFT, "
                "or merge it there"
            )
        _refuse_unknown(values, folder)
        config = LoraConfig.from_pretrained(str(folder))
        state = load_file(folder / TENSORS)
        return AdapterFolder(
            state=_at_scale_one(state, config),
            base_model=config.base_model_name_or_path or "",
            fan_in_fan_out=config.fan_in_fan_out,
            task_type=values.get("task_type"),
        )
    except AdapterError:
        raise
    except FileNotFoundError as error:
        raise no_adapter(folder) from error
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError(f"{folder} holds no adapter that can be read: {error}") from error


def no_adapter(folder: Path) -> AdapterError:
    """The error for a folder that lacks a file of an adapter's."""
    if (folder / _PICKLE).exists():
        return AdapterError(
            f"the adapter in {folder} is a pickle, {_PICKLE}, which is not read: save it again "
            "with PEFT's save_pretrained, which writes safetensors by default"
        )
    return AdapterError(f"{folder} is no PEFT folder, which has {CONFIG} and {TENSORS}")


def _refuse_unknown(values: Mapping[str, Any], folder: Path) -> None:
    """Check that the adapter is its factors and nothing else.

    Raises:
        AdapterError: it has an option by which it computes something else, or changes the base.
    """
    plain = asdict(LoraConfig())
    for name, value in values.items():
        if name in _OF_PLAIN_LORA or not value or value == plain.get(name):
            continue
        if name == "init_lora_weights" and value in _INITS:
            continue
        raise AdapterError(
            f"{folder} has {name} = {value!r} in its {CONFIG}, which makes it more than LoRA "
            "factors on the base model as it is. Load it with PEFT and merge it there, or convert "
            "it to a plain LoRA (for PiSSA and OLoRA: save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )


def _at_scale_one(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    if others := sorted(name for name in state if ".lora_" not in name):
        raise AdapterError(
            f"it has {len(others)} tensors that are no LoRA factors (first: {others[0]}); save it "
            "with save_pretrained(folder, save_embedding_layers=False) if they are the base "
            "model's own embeddings, or else merge it with PEFT"
        )
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
