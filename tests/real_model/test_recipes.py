"""Recipes are settings that a run takes, and can be planned for models of their shapes offline."""

import os
import tomllib
from pathlib import Path
from types import MappingProxyType

import pytest
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from flower_split.adapters import method_problems
from flower_split.apps.checking.planning import make_plan
from flower_split.apps.folder.app import App
from flower_split.apps.folder.completed import completed
from flower_split.apps.folder.overrides import flat
from flower_split.config.run_config import read_run_config, run_keys
from flower_split.strategies import inner_problems

APP = Path(__file__).parents[2] / "examples/real_model"
RECIPES = sorted((APP / "recipes").glob("*.toml"))
QWEN = MappingProxyType(
    {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
)


def llama(**shape: int) -> PretrainedConfig:
    return LlamaConfig(tie_word_embeddings=True, **shape)


def qwen(hidden: int, inner: int, layers: int, heads: int, **other: bool) -> PretrainedConfig:
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return Qwen3Config(**{**QWEN, **shape, "num_attention_heads": heads, **other})


SHAPES = {
    "llama-3.2-1b": llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
    ),
    "qwen3-0.6b": qwen(1024, 3072, 28, 16),
    "qwen3-4b": qwen(2560, 9728, 36, 32),
    "qwen3-8b-qlora": qwen(4096, 12288, 36, 32, tie_word_embeddings=False),
    "smollm2-135m": llama(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
    ),
}
"""Each recipe's model, as its config.json says it."""


def test_every_recipe_has_a_shape_here() -> None:
    assert [path.stem for path in RECIPES] == sorted(SHAPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_settings_of_the_app(recipe: Path) -> None:
    given = [str(recipe)]
    assert flat(tomllib.loads(recipe.read_text())).keys() <= run_keys().keys()
    with completed(APP, given) as folder:
        config = read_run_config(
            App.read(folder, given).settings,
            check_strategy=inner_problems,
            check_method=method_problems,
        )
    assert config.model.name.partition("/")[2]
    assert config.train.local_steps == config.data.max_examples == 0


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_planned(recipe: Path, tmp_path: Path) -> None:
    SHAPES[recipe.stem].save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]
    settings = flat(tomllib.loads(recipe.read_text()))
    config = read_run_config({**settings, "model.name": str(tmp_path)})
    plan = make_plan(config, client_memory=16 * 10**9, bandwidth=1e8)
    assert plan.cut is not None
    assert plan.cut.cuts.bottom_layers == config.split.bottom_layers


def test_the_table_names_every_recipe() -> None:
    table = (APP / "recipes/README.md").read_text()
    assert all(f"]({path.name})" in table for path in RECIPES)
