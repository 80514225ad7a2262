"""Tiny models and batches to train them on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from flower_split.config.sections import TrainConfig

FAMILIES = ("falcon", "gpt2", "llama")
_WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Makes the same model at every call."""

    def make(family: str = "llama") -> PreTrainedModel:
        changes = _WITHOUT_DROPOUT if family == "gpt2" else {}
        return tiny_model(family, layers=2, **changes)

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


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
