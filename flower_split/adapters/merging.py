"""Merging an adapter into the full weights, for the model's owner; PEFT does the arithmetic."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from flower_split.errors import AdapterError, ModelError


def save_merged(adapter: Path, model: str, folder: Path) -> None:
    """Write `model` with the adapter merged into its weights, in the weights' own dtype.

    Args:
        adapter: A PEFT folder.
        model: Folder or hub name of the uncut model.
        folder: Gets the model in safetensors, and its tokenizer where it has one.

    Raises:
        ModelError: `model` cannot be loaded.
        AdapterError: the adapter does not fit it.
    """
    try:
        base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} cannot be loaded as a causal language model: {error}") from error
    try:
        with torch.no_grad():
            merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        raise AdapterError(f"the adapter cannot be merged into {model}: {error}") from error
    merged.save_pretrained(folder)
    try:
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    except (OSError, ValueError):
        return  # a model without a tokenizer is complete without one
