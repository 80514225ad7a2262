"""Uncut quantized models: what the cut ones are compared with."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flower_split.segments.loading.quantization import keep_unpacked, quantization_config


def quantized(folder: Path | str, kind: str) -> PreTrainedModel:
    """Quantized by transformers, on the CPU, with weights that no evaluation packs anew."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantization_config(kind, torch.float32),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    keep_unpacked(model)
    return model
