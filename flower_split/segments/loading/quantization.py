"""Quantization of base weights while a segment is loaded, by transformers and bitsandbytes.

Each tensor is quantized as soon as it has been read, so that the segment never stands in memory in
full precision. QLoRA is Dettmers et al. 2023 (arXiv:2305.14314), LLM.int8 Dettmers et al. 2022
(arXiv:2208.07339).
"""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from flower_split.config.checks import one_of
from flower_split.config.model import QUANTIZATIONS
from flower_split.errors import ConfigError


def quantization_config(name: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The stock loader's settings for a quantization of the configuration.

    Args:
        name: One of `QUANTIZATIONS`.
        dtype: In which the quantized layers compute.

    Raises:
        ConfigError: there is no such quantization, or bitsandbytes is not installed.
    """
    one_of("model.quantization", name, QUANTIZATIONS)
    if name == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization {name!r} needs bitsandbytes, which is not installed: "
            "pip install 'flower-split[quantization]' on the server and on every silo"
        )
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=name == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
    )
