"""Dropout that computes in a causal language model is found, and no other."""

import pytest
from peft import LoHaConfig, LoKrConfig, OFTConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, LlamaConfig, MixtralConfig, OPTConfig

from flower_split.segments.randomness import has_dropout

NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize(
    ("config", "drops"),
    [
        (GPT2Config(), True),
        (GPT2Config(**NONE), False),  # its `summary_first_dropout` is of a head for sequences
        (GPT2Config(**NONE | {"attn_pdrop": 0.1}), True),
        (LlamaConfig(), False),
        (LlamaConfig(attention_dropout=0.1), True),
        (OPTConfig(dropout=0.0), False),
        (OPTConfig(), True),
        (MixtralConfig(router_jitter_noise=0.1), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_setting_counts_where_it_computes(config, drops):
    assert has_dropout(nn.Linear(2, 2), config) == drops


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(
    ("method", "key"),
    [(LoHaConfig, "rank_dropout"), (LoKrConfig, "module_dropout"), (OFTConfig, "module_dropout")],
)
def test_an_adapter_that_drops_by_a_function_of_its_own_counts(method, key, rate):
    options = {"target_modules": ["0"], key: rate}
    if method is not OFTConfig:
        options["r"] = 2
    adapted = get_peft_model(nn.Sequential(nn.Linear(32, 32)), method(**options))
    assert has_dropout(adapted, LlamaConfig()) == bool(rate)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_module_counts_with_its_rate(rate):
    assert has_dropout(nn.Sequential(nn.Dropout(rate)), LlamaConfig()) == bool(rate)
