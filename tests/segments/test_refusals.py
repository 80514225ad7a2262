"""What cannot be exact is refused, and the error says what to do."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import CASE_BY_NAME
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForQuestionAnswering,
    LlamaModel,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments import split_model, split_segments
from flower_split.segments.refusals import refuse_config


class _OwnBert(BertLMHeadModel):
    """Not the class for which the family is proved."""


@pytest.mark.parametrize("cut", [split_model, split_segments])
def test_a_class_of_ones_own_is_not_taken_for_the_stock_one(cut: Any) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        is_decoder=True,
    )
    with pytest.raises(UnsupportedFamilyError, match=r"BertLMHeadModel, not for a _OwnBert"):
        cut(_OwnBert(config), 1, 1)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=50, d_model=32, num_layers=4, num_heads=4, d_ff=48, d_kv=8)
    with pytest.raises(UnsupportedFamilyError, match="one stack of layers"):
        split_model(T5ForConditionalGeneration(config), 1, 1)


def test_cross_attention_is_refused() -> None:
    config = GPT2Config(vocab_size=50, n_embd=32, n_head=4, n_layer=4, add_cross_attention=True)
    with pytest.raises(UnsupportedFamilyError, match="cross-attention"):
        split_model(GPT2LMHeadModel(config), 1, 1)


def test_a_vision_language_model_is_refused() -> None:
    with pytest.raises(UnsupportedFamilyError, match="vision tower"):
        refuse_config(Gemma3Config())


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("llama", {"output_hidden_states": True}, ModelError, "output_hidden_states"),
        ("llama", {"output_attentions": True}, ModelError, "output_attentions"),
        ("mixtral", {"output_router_logits": True}, ModelError, "balance loss"),
        ("qwen3_moe", {"output_router_logits": True}, ModelError, "balance loss"),
        ("opt", {"layerdrop": 0.1}, ModelError, "layerdrop must be 0, not 0.1"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq", "load_in_4bit": True}},
            ModelError,
            "quantized",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            UnsupportedFamilyError,
            "sequences seen before",
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            UnsupportedFamilyError,
            "sequences seen before",
        ),
        (
            "gpt2",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            UnsupportedFamilyError,
            "sequences seen before",
        ),
    ],
)
def test_an_option_that_rules_out_exactness_is_refused(
    name: str, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    config: PreTrainedConfig = CASE_BY_NAME[name].config(
        **changes, **({"attn_implementation": "eager"} if "output_attentions" in changes else {})
    )
    with pytest.raises(error, match=words):
        refuse_config(config)


def test_an_option_set_on_a_model_is_refused_when_it_is_cut() -> None:
    model = CASE_BY_NAME["mixtral"].model()
    model.config.output_router_logits = True
    with pytest.raises(ModelError, match="balance loss"):
        split_model(model, 1, 1)


def test_a_model_without_a_language_modelling_head_is_refused() -> None:
    config = CASE_BY_NAME["llama"].config()
    for model in (LlamaModel(config), LlamaForQuestionAnswering(config)):
        with pytest.raises(ModelError, match="AutoModelForCausalLM"):
            split_model(model, 1, 1)


def test_what_is_no_stock_model_is_refused() -> None:
    with pytest.raises(ModelError, match="not Linear"):
        split_model(torch.nn.Linear(2, 2), 1, 1)  # type: ignore[arg-type]
    wrapped = get_peft_model(CASE_BY_NAME["llama"].model(), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ModelError, match="before get_peft_model"):
        split_model(wrapped, 1, 1)  # type: ignore[arg-type]


def test_a_segment_cannot_be_cut_again() -> None:
    client, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)
    for part in (client, trunk.model):
        with pytest.raises(ModelError, match="cut already"):
            split_model(part, 1, 1)
