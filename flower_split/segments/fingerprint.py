"""The fingerprint of a model's architecture, by which two parties know they cut the same model."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedConfig

# What two parties may set apart without computing different things in the layers, and the dtype,
# which the handshake compares by name.
_VOLATILE = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "experts_implementation",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_weights",
        "transformers_version",
        "use_cache",
    }
)

_ENDS = frozenset(
    {
        *("_commit_hash", "_output_attentions", "gradient_checkpointing", "tie_word_embeddings"),
        "vocab_size",
    }
)
"""What a silo may set in its own model after that was cut: of its ends, or no computation."""

_QUANTIZED = (
    "quant_method",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "quant_type",
)
"""What is common of a quantization; the dtype in which it computes is each party's own."""


_JSON = (str, int, float, bool, list, tuple, dict, type(None))


def computing_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What the layers of a model in memory may read off its configuration while they compute."""
    return {
        name: value
        for name, value in vars(config).items()
        if name not in _VOLATILE and name not in _ENDS and isinstance(value, _JSON)
    }


def fingerprint(config: PreTrainedConfig) -> str:
    """SHA-256, in hexadecimal, of the configuration's canonical JSON without volatile keys.

    It tells architectures apart, not weights.
    """
    kept = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    if isinstance(quantized := kept.get("quantization_config"), dict):
        kept["quantization_config"] = {key: quantized.get(key) for key in _QUANTIZED}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
