"""Wrapping a model says nothing that is no business of who trains."""

import warnings

from tiny_models import tiny_model

from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings


def test_a_model_is_planned_and_wrapped_without_a_word() -> None:
    model = tiny_model("gpt2", layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(model, resolve_lora(model, LoraSettings()))
