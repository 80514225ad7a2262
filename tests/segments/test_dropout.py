"""Dropout that computes in a causal language model is found, and no other."""

import pytest
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
def test_a_module_counts_with_its_rate(rate):
    assert has_dropout(nn.Sequential(nn.Dropout(rate)), LlamaConfig()) == bool(rate)
