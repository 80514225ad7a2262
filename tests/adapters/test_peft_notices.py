"""Wrapping a model says nothing that is no business of who trains."""

import warnings

from transformers import GPT2Config, GPT2LMHeadModel

from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings


def test_a_model_is_planned_and_wrapped_without_a_word() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(model, resolve_lora(model, LoraSettings()))
