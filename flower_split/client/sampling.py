"""A sample: a prompt, continued greedily through the trunk."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from flower_split.training.batch import device_of
from flower_split.training.modes import mode

SAMPLE_TOKENS = 48
"""Tokens by which a prompt is continued."""


def continued(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int
) -> str:
    """`prompt` and its most likely continuation, as text."""
    encoded = tokenizer(prompt, return_tensors="pt").to(device_of(model))
    with mode(model, training=False), torch.no_grad():
        ids = model.generate(  # type: ignore[operator]
            **encoded, max_new_tokens=max_new_tokens, do_sample=False
        )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
