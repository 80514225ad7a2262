"""The table of all causal model types of transformers: which are exact when they are cut.

::

    python tests/support/family_table.py --write [MODEL_TYPE …]
"""

import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers
from proved_table import ProvedTable
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_HALVES = (
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
    *("pegasus", "plbart", "prophetnet", "whisper"),
)
"""Encoder-decoders whose decoder transformers has as a model of its own."""
_DECODER = {"is_encoder_decoder": False, "is_decoder": True}
_FULL = {"rope_type": "default", "rope_theta": 10000.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _FULL}},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 500000.0, "clip_qkv": 8}},
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
    },
    "granitemoehybrid": {
        "layer_types": [*["linear_attention"] * 5, "full_attention", *["linear_attention"] * 26]
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 48},
    "xmod": {"default_language": "en_XX"},
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "whisper",
        ),
        _DECODER,
    ),
}
"""What checkpoints of a type set, and its default configuration leaves open or has otherwise."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the proof came to for one model type."""

    model_type: str
    exact: bool
    caches: bool = False
    reason: str = ""

    @property
    def line(self) -> str:
        """The row of the table."""
        how = ("yes" if self.caches else "without a cache") if self.exact else "no"
        return f"| `{self.model_type}` | {how} | {self.reason} |"


def causal_config(model_type: str) -> PreTrainedConfig:
    """The default configuration of a type, as a decoder."""
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config


def line_of(model_type: str) -> str:
    """The row of one type, proved in this process."""
    return prove_type(model_type).line


def prove_type(model_type: str) -> Row:
    """Prove one type, in this process."""
    from flower_split.errors import ModelError
    from flower_split.verification import prove

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = causal_config(model_type)
        except Exception as error:
            reason = f"its default configuration is invalid: {type(error).__name__}"
            return Row(model_type=model_type, exact=False, reason=reason)
        try:
            family = prove(config)
        except ModelError as error:
            return Row(model_type=model_type, exact=False, reason=shortened(str(error)))
    return Row(model_type=model_type, exact=True, caches=family.caches)


def shortened(reason: str) -> str:
    """What is the same each time: no amounts, no folders."""
    line = reason.split("; without a cache, ")[0].splitlines()[0]
    line = re.sub(r" by [\d.]+(e[-+]\d+)?", "", line)
    line = re.sub(r"/\S*/flower-split-twin-\w+/", "", line)
    return (line if len(line) <= 160 else f"{line[:159]}…").replace("|", "\\|")


def render(lines: Mapping[str, str]) -> str:
    """The table, of its lines by model type."""
    exact = sum(" | no | " not in line for line in lines.values())
    cached = sum(" | yes | " in line for line in lines.values())
    return "\n".join(
        (
            f"Of the {len(lines)} causal model types of transformers {transformers.__version__}, "
            f"{exact} are exact when they",
            f"are cut, {cached} of them with a cache too. Default configurations were tried, as "
            "decoders. Written by",
            "`python tests/support/family_table.py --write`.",
            "",
            "| `model_type` | exact | what differs, or why it cannot be cut |",
            "|---|---|---|",
            *(lines[model_type] for model_type in sorted(lines)),
            "",
        )
    )


TABLE = ProvedTable(
    command="family_table.py",
    page="models.md",
    mark="## All causal model types",
    types=TYPES,
    prove=line_of,
    render=render,
)

if __name__ == "__main__":
    TABLE.main(sys.argv[1:])
