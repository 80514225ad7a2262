"""The pretraining script: the same recipe gives the same weights, and held-out text stays out."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples/quickstart/pretrain.py"
TEXTS = [
    f"Return the {noun} of {number} items." for noun in ("sum", "mean") for number in range(60)
]


@pytest.fixture(scope="module")
def pretrain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_pretrain", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(pretrain: ModuleType, seed: int) -> dict[str, torch.Tensor]:
    recipe = pretrain.Recipe(
        vocabulary=300, hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32,
        context=16, batch=4, steps=8, warmup=2, seed=seed,
    )  # fmt: skip
    tokenizer = pretrain.train_tokenizer(TEXTS, recipe.vocabulary)
    rows = pretrain.blocks(TEXTS, tokenizer, recipe.context)
    model = pretrain.build_model(recipe, tokenizer)
    pretrain.train(model, rows, rows[:4], recipe)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def test_the_same_seed_gives_the_same_weights(pretrain: ModuleType) -> None:
    first, second, other = (train(pretrain, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "proj" in name)


def test_blocks_hold_the_whole_stream_in_order(pretrain: ModuleType) -> None:
    tokenizer = pretrain.train_tokenizer(TEXTS, 300)
    stream = [
        token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ]
    rows = pretrain.blocks(TEXTS, tokenizer, 7)
    assert rows.shape == (len(stream) // 7, 7)
    assert rows.flatten().tolist() == stream[: rows.numel()]


def test_held_out_texts_are_chosen_by_themselves(pretrain: ModuleType) -> None:
    chosen = [text for text in TEXTS if pretrain.is_held_out(text, 0.5)]
    assert 40 <= len(chosen) <= 80
    assert chosen == [text for text in reversed(TEXTS) if pretrain.is_held_out(text, 0.5)][::-1]
    assert not any(pretrain.is_held_out(text, 0.0) for text in TEXTS)
    assert all(pretrain.is_held_out(text, 1.0) for text in TEXTS)


def test_the_learning_rate_warms_up_and_decays(pretrain: ModuleType) -> None:
    recipe = pretrain.Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [pretrain.learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.05 < rates[-1] < 0.06
