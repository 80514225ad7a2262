"""A model's folder with an adapter in it, or with kernels that its configuration asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_models import CASE_BY_NAME

from flower_split.errors import WeightsError
from flower_split.segments import (
    fingerprint,
    join,
    load_client_model,
    load_skeleton,
    load_trunk,
)
from flower_split.segments.loading.share import silo_share

CUTS = {"bottom_layers": 1, "top_layers": 1}
LORA = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
OTHER = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")


def loading(folder: Path) -> list[Any]:
    """Everything by which a model's folder is read."""
    return [
        lambda: load_client_model(folder, **CUTS),
        lambda: load_trunk(folder, **CUTS),
        lambda: load_skeleton(folder),
        lambda: silo_share(folder, **CUTS),
    ]


@pytest.mark.parametrize("adapter", [LORA, OTHER], ids=["lora", "ia3"])
def test_adapter_in_the_models_folder_is_refused(tmp_path: Path, adapter: Any) -> None:
    model = CASE_BY_NAME["llama"].model()
    model.save_pretrained(tmp_path)
    get_peft_model(model, adapter).save_pretrained(tmp_path)
    for load in loading(tmp_path):
        with pytest.raises(WeightsError, match=r"has a PEFT adapter.*Move the adapter's files"):
            load()
    for file in tmp_path.glob("adapter_*"):
        file.unlink()
    for load in loading(tmp_path):
        load()


def test_adapter_in_place_of_a_model_is_called_one(tmp_path: Path) -> None:
    wrapped = get_peft_model(CASE_BY_NAME["llama"].model(), LORA)
    wrapped.peft_config["default"].base_model_name_or_path = "someone/base"
    wrapped.save_pretrained(tmp_path)
    for load in loading(tmp_path):
        with pytest.raises(WeightsError, match="a PEFT adapter of 'someone/base', not a model"):
            load()
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(WeightsError, match="is a PEFT adapter, not a model: give its base"):
        load_skeleton(tmp_path)


def test_folder_around_models_names_them(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path / "checkpoint-30")
    with pytest.raises(WeightsError, match=r"There are models in it: checkpoint-30$"):
        load_skeleton(tmp_path)
    cached = tmp_path / "models--someone--tiny-llama"
    cached.mkdir()
    with pytest.raises(WeightsError, match="cache of 'someone/tiny-llama': give that name"):
        load_skeleton(cached)


@pytest.mark.parametrize(
    "kernel",
    ["flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "eager", "paged|sdpa",
     "kernels-community/flash-attn", "nonsense", {"": "flash_attention_2"}],
    ids=str,
)  # fmt: skip
def test_the_key_wins_over_the_attention_that_the_configuration_names(
    tmp_path: Path, kernel: Any
) -> None:
    model = CASE_BY_NAME["llama"].model("sdpa")
    model.save_pretrained(tmp_path)
    plain = fingerprint(load_skeleton(tmp_path).config)
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), "attn_implementation": kernel}
    path.write_text(json.dumps(values), encoding="utf-8")
    for attention, used in (("auto", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")):
        client = load_client_model(tmp_path, **CUTS, attention=attention)
        assert client.config._attn_implementation == used
    join(client, load_trunk(tmp_path, **CUTS, attention="sdpa"))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(client(ids).logits, model(ids).logits)
    assert fingerprint(load_skeleton(tmp_path).config) == plain


@pytest.mark.parametrize("kernel", ["sonicmoe", "deepgemm", "nonsense"])
def test_experts_that_need_another_package_are_refused(tmp_path: Path, kernel: str) -> None:
    CASE_BY_NAME["mixtral"].model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), "experts_implementation": kernel}
    path.write_text(json.dumps(values), encoding="utf-8")
    for load in loading(tmp_path):
        with pytest.raises(WeightsError, match="expected one of eager, grouped_mm, batched_mm"):
            load()


def test_quantized_folder_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    values = {**json.loads(path.read_text()), "quantization_config": quantized}
    path.write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="are quantized already"):
        load_trunk(tmp_path, **CUTS)
