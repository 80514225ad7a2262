"""What cannot be exact when it is cut, and is therefore refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import AdapterError, ModelError, UnsupportedFamilyError
from flower_split.segments.families import known_family
from flower_split.segments.outside import head_of
from flower_split.segments.pass_through import PassThrough, Stub
from flower_split.segments.stock_classes import task_of_model

BITSANDBYTES = "bitsandbytes"
LONGROPE = "longrope"
"""Of which the longest of a pass's texts chooses the frequencies of all its rows."""
_OUTPUTS = {
    "output_hidden_states": "the trunk's hidden states are not at the silo",
    "output_attentions": "the trunk's attention weights are not at the silo",
    "output_router_logits": "the balance loss needs the router logits of the trunk's layers",
}


def refuse_model(model: nn.Module) -> None:
    """Check that `model` is a whole stock causal language model.

    Raises:
        ModelError: it is something else, or it is cut already.
        UnsupportedFamilyError: its configuration rules out exactness.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"expected a transformers model, not {type(model).__name__}; cut the model before "
            "get_peft_model"
        )
    if any(isinstance(module, (PassThrough, Stub)) for module in model.modules()):
        raise ModelError("this model is cut already; cut the whole model")
    refuse_config(model.config)
    if getattr(model, "is_loaded_in_8bit", False):
        raise ModelError(
            "an LLM.int8 model in memory cannot be cut: its modules cannot share their weights. "
            "Load the parts with load_client_model and load_trunk, quantization='int8'"
        )
    causal = task_of_model(model) == CAUSAL_LM
    if model.base_model is model or (causal and head_of(model) is None):
        raise ModelError(
            f"expected a causal language model with a head, not {type(model).__name__}; load it "
            "with AutoModelForCausalLM"
        )


def refuse_config(config: PreTrainedConfig) -> None:
    """Check what can be told from the configuration alone.

    Raises:
        ModelError: an option needs what the trunk does not send, or the model is quantized
            otherwise than by bitsandbytes.
        UnsupportedFamilyError: the architecture cannot be exact.
    """
    kind = config.model_type
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise UnsupportedFamilyError(
            f"{kind} with an encoder or cross-attention cannot be cut; expected a model of one "
            "stack of layers"
        )
    if config.get_text_config(decoder=True) is not config:
        raise UnsupportedFamilyError(
            f"{kind} has parts beside its text model, such as a vision tower, and cannot be cut; "
            "cut a text-only causal language model"
        )
    method = quantization_of(config)
    if method not in ("", BITSANDBYTES) and not _is_weight_only(config):
        raise ModelError(
            f"this {kind} model is quantized by {method}, of which nothing is known when it is "
            "cut; load it in float32, bfloat16 or float16, or set model.quantization"
        )
    for option, reason in _OUTPUTS.items():
        if getattr(config, option, False):
            raise ModelError(f"config.{option} must be off: {reason}")
    if getattr(config, "layerdrop", 0.0):
        raise ModelError(
            f"config.layerdrop must be 0, not {config.layerdrop}: it would skip the trunk as one "
            "layer"
        )
    if any("dynamic" in kind for kind in rope_types(config)):
        raise UnsupportedFamilyError(
            "rope_type 'dynamic' makes frequencies depend on sequences seen before, which a "
            "trunk that several silos share cannot know; use 'default', 'linear', 'yarn', "
            "'llama3' or 'longrope'"
        )


def check_rows_apart(config: PreTrainedConfig) -> None:
    """Raise `AdapterError` unless every row of a batch is known to be computed for itself.

    DP-SGD bounds what one row changes, and could not where another row's values depend on it: as
    experts that divide tokens among themselves, batch norms, frequencies of the longest text, and
    LLM.int8's choice of columns.
    """
    kind, family = config.model_type, known_family(config.model_type)
    problem = ""
    if family is None or not family.mixes_rows:
        problem = f"it is not known that {kind} computes every row of a batch for itself"
    elif LONGROPE in rope_types(config):
        problem = f"this {kind} chooses its frequencies by the longest row of a batch"
    elif _chooses_columns(config):
        problem = "LLM.int8 chooses columns by the values of all rows of a batch"
    if problem:
        raise AdapterError(
            f"{problem}, which DP-SGD (dp.noise) rests on: take a model of a family such as gpt2, "
            "llama, mistral, qwen2, qwen3, gemma2, phi3 or smollm3, without int8 weights and "
            "longrope"
        )


def _chooses_columns(config: PreTrainedConfig) -> bool:
    held: Any = getattr(config, "quantization_config", None)
    fields = held if isinstance(held, Mapping) or held is None else held.to_dict()
    return bool(fields and fields.get("load_in_8bit"))


def quantization_of(config: PreTrainedConfig) -> str:
    """By what a model's weights are quantized; empty where they are not."""
    held: Any = getattr(config, "quantization_config", None)
    if held is None:
        return ""
    fields = held if isinstance(held, Mapping) else held.to_dict()
    method = fields.get("quant_method") or "an unknown method"
    return str(getattr(method, "value", method))


def _is_weight_only(config: PreTrainedConfig) -> bool:
    """Whether torchao has quantized a model's weights to int8, and no activations."""
    held: Any = getattr(config, "quantization_config", None)
    fields = held if isinstance(held, Mapping) else held.to_dict()
    kinds = fields.get("quant_type")
    chosen = kinds.get("default") if isinstance(kinds, Mapping) else None
    return isinstance(chosen, Mapping) and chosen.get("_type") == "Int8WeightOnlyConfig"


def context_length(config: PreTrainedConfig) -> int:
    """Tokens of the longest text that a model was made for, beyond which texts are refused.

    0 where its configuration has none, which itself knows names such as GPT-2's `n_positions`.
    """
    text = config.get_text_config(decoder=True)
    found = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((one for one in found if isinstance(one, int) and one > 0), 0)


def rope_types(config: PreTrainedConfig) -> set[str]:
    """Every type that is in `rope_parameters`, or in `rope_scaling`, as it was called before.

    Either may be given for each kind of layer.
    """
    named = (getattr(config, name, None) for name in ("rope_parameters", "rope_scaling"))
    return {found for parameters in named for found in _types(parameters)}


def _types(parameters: Any) -> Iterator[str]:
    if not isinstance(parameters, Mapping):
        return
    for key, value in parameters.items():
        if key in ("rope_type", "type") and value is not None:
            yield str(value)
        else:
            yield from _types(value)
