"""Tiny models and batches to train them on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from flower_split.config.sections import TrainConfig

VOCABULARY = 41


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def falcon() -> PreTrainedModel:
    return FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        )
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "gpt2": gpt2,
    "falcon": falcon,
}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Makes the same model at every call."""

    def make(family: str = "llama") -> PreTrainedModel:
        torch.manual_seed(0)
        return FAMILIES[family]()

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    """Makes a batch of rows of the given lengths, without loss on the first `prompt` tokens."""

    def make(*lengths: int, seed: int = 0, prompt: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :prompt] = -100
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}

    return make


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    def make(**options: Any) -> TrainConfig:
        return TrainConfig(**{"learning_rate": 0.01, "max_grad_norm": 0.0, **options})

    return make


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
