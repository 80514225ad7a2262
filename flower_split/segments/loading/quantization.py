"""Quantization of base weights while a segment is loaded, by transformers and what it calls.

Each tensor is quantized as soon as it has been read, so that the segment never stands in memory in
full precision. QLoRA is Dettmers et al. 2023 (arXiv:2305.14314), LLM.int8 Dettmers et al. 2022
(arXiv:2208.07339).
"""

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from flower_split.config.checks import one_of
from flower_split.config.model import QUANTIZATIONS
from flower_split.errors import ConfigError, ModelError

QuantizationConfig = BitsAndBytesConfig | TorchAoConfig

TORCHAO = "torchao-int8"


def quantization_config(name: str, dtype: torch.dtype) -> QuantizationConfig | None:
    """The stock loader's settings for a quantization of the configuration.

    Args:
        name: One of `QUANTIZATIONS`.
        dtype: In which the quantized layers compute.

    Raises:
        ConfigError: there is no such quantization, or what does it is not installed.
    """
    one_of("model.quantization", name, QUANTIZATIONS)
    if name == "none":
        return None
    package, extra = ("torchao",) * 2 if name == TORCHAO else ("bitsandbytes", "quantization")
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"model.quantization {name!r} needs {package}, which is not installed: "
            f"pip install 'flower-split[{extra}]' on the server and on every silo"
        )
    if name == TORCHAO:
        settings = importlib.import_module("torchao.quantization").Int8WeightOnlyConfig()
        return TorchAoConfig(settings)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=name == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
    )


def check_quantized(model: PreTrainedModel, settings: QuantizationConfig | None) -> None:
    """Raise `ModelError` where `settings` quantize nothing of a segment's layers.

    torchao passes over modules that are none of torch's linear ones, such as GPT-2's, in silence.
    """
    if not isinstance(settings, TorchAoConfig):
        return
    kind = importlib.import_module("torchao.utils").TorchAOBaseTensor
    held = [
        (name, isinstance(module.weight, kind))
        for name, module in model.base_model.named_modules()
        if type(module).__name__ == "Conv1D" or isinstance(module, nn.Linear)
    ]
    if held and not any(quantized for _, quantized in held):
        raise ModelError(
            f"torchao quantizes nothing of this {model.config.model_type} model, whose modules are "
            f"such as {held[0][0]}: set model.quantization to one of bitsandbytes' (nf4, "
            "nf4-double, int8), or 'none'"
        )


def keep_unpacked(model: nn.Module) -> None:
    """Have 4-bit weights stay as they were quantized, whatever is computed with them.

    On a processor with AVX512 BF16 bitsandbytes packs them anew when they are first evaluated: what
    is trained afterwards has another loss, and through such a layer no gradient. A silo's
    evaluation would change what others train through the same trunk.
    """
    for module in model.modules():
        if not getattr(module, "support_avx512bf16_for_cpu", False):
            continue
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        module.state_dict()  # bitsandbytes unpacks what it saves


def beside_weights(model: nn.Module) -> Iterator[object]:
    """What bitsandbytes' layers hold of their weights that is neither parameter nor buffer.

    Copies of a model that share its weights must share it too. LLM.int8's scales are at the weight
    until the layer first computes, which takes them away: of several layers with one weight, one
    alone would have them. Here each layer takes its own, before there are copies.
    """
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            layer: Any = module
            if getattr(layer.weight, "CB", None) is not None:
                layer.init_8bit_state()
            yield from (held for held in (layer.state.CB, layer.state.SCB) if held is not None)
        elif (state := getattr(module, "quant_state", None)) is not None:
            yield state
