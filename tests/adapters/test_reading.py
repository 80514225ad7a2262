"""PEFT folders: plain LoRA is read, and what is more than that is refused by name."""

from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_models import CASE_BY_NAME

from flower_split.adapters import read_adapter_folder
from flower_split.errors import AdapterError


def save(folder: Path, **options: Any) -> Path:
    values = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    get_peft_model(CASE_BY_NAME["llama"].model(), LoraConfig(**values)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "lora_dropout": 0.1},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal", "r": 4},
        {"layers_to_transform": [1, 2]},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    ],
    ids=str,
)
def test_plain_lora_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    assert read_adapter_folder(save(tmp_path, **options)).state


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices = "),
        ({"layer_replication": [(0, 2), (1, 4)]}, "layer_replication = "),
    ],
    ids=lambda value: str(value),
)
def test_what_is_more_than_factors_on_the_base_is_refused(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    save(tmp_path, **options)
    with pytest.raises(AdapterError) as caught:
        read_adapter_folder(tmp_path)
    assert named in str(caught.value)
    assert "Load it with PEFT and merge it there" in str(caught.value)


def test_an_adapter_of_another_type_is_named(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(CASE_BY_NAME["llama"].model(), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="holds a IA3, expected a LORA"):
        read_adapter_folder(tmp_path)


def test_embeddings_that_peft_saved_with_it_are_named(tmp_path: Path) -> None:
    save(tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match="save_embedding_layers=False"):
        read_adapter_folder(tmp_path)


def test_options_of_a_newer_peft_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("{", '{"use_xora": true,', 1))
    with pytest.raises(AdapterError, match="use_xora = True"):
        read_adapter_folder(tmp_path)
