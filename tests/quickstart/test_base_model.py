"""The shipped base model: small, recorded, and it has learned English docstrings."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flower_split.quickstart import BASE_MODEL

DOCSTRING = """Return a list of the lines in the string, breaking at line boundaries.

If keepends is given and true, line breaks are included in the resulting list.
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    package, name = BASE_MODEL.split(":")
    return Path(str(files(package) / name))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def test_it_is_small_and_deep_enough_to_cut(model: PreTrainedModel, folder: Path) -> None:
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.config.num_hidden_layers >= 6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}


def test_its_record_says_what_it_is(model: PreTrainedModel, folder: Path) -> None:
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["parameters"] == model.num_parameters()
    assert record["held_out_perplexity"] < 40
    assert {"torch", "transformers", "tokenizers"} <= set(record["versions"])
    recipe = record["recipe"]
    assert (recipe["vocabulary"], recipe["layers"]) == (
        model.config.vocab_size,
        model.config.num_hidden_layers,
    )


def test_the_tokenizer_gives_every_text_back(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in (DOCSTRING, "  indented\n\n\ttabs", "naïve façade — 日本語 🌸", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


@torch.no_grad()
def test_it_prefers_english_in_order(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer(DOCSTRING, return_tensors="pt")["input_ids"]
    shuffled = ids.clone()
    order = torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    shuffled[:, 1:] = ids[:, 1:][:, order]
    in_order = model(input_ids=ids, labels=ids).loss.exp().item()
    out_of_order = model(input_ids=shuffled, labels=shuffled).loss.exp().item()
    assert in_order < 40 < 5 * in_order < out_of_order
