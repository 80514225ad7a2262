"""Merged models: what base and adapter compute, or an error and no model."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from tiny_models import CASE_BY_NAME
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from flower_split.adapters import merging
from flower_split.adapters.merging import save_merged
from flower_split.errors import AdapterError, ModelError

IDS = torch.arange(5, 25).reshape(2, 10)


def save_pair(
    folder: Path,
    case: str,
    targets: list[str] | str,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Path, Path]:
    """A base model's folder and that of an adapter without neutral values."""
    base = CASE_BY_NAME[case].model().to(dtype)
    base.save_pretrained(folder / "base")
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM", r=3, **options)
    wrapped = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "base", folder / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def load(folder: Path, dtype: Any = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


TIED = [
    ("llama-tied", ["q_proj", "lm_head"]),
    ("llama-tied", ["embed_tokens"]),
    ("llama-tied", ["embed_tokens", "lm_head"]),
    ("llama-tied", ["q_proj"]),
    ("gpt2", ["c_attn", "lm_head"]),
    ("gpt2", ["wte", "lm_head"]),
    ("gemma2", ["lm_head", "embed_tokens"]),
    ("granite-tied", ["lm_head"]),
    ("gpt_neox-serial", ["lm_head"]),
    ("opt", ["lm_head"]),
    ("bloom", ["word_embeddings"]),
    ("cohere", ["lm_head"]),
    ("falcon", ["lm_head"]),
]


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize(("case", "targets"), TIED)
def test_merged_into_tied_weights_it_computes_what_base_and_adapter_do(
    case: str, targets: list[str], tmp_path: Path
) -> None:
    base, adapter = save_pair(tmp_path, case, targets)
    save_merged(adapter, str(base), tmp_path / "merged")
    expected = logits(PeftModel.from_pretrained(load(base), adapter))
    merged = load(tmp_path / "merged")
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert not torch.allclose(logits(load(base)), expected, atol=1e-2)
    untied = {"lm_head", "embed_tokens", "wte", "word_embeddings"} & set(targets)
    assert merged.config.tie_word_embeddings is not bool(untied)


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("llama", "all-linear"),
        ("gpt2-untied", "all-linear"),
        ("phi3", "all-linear"),
        ("qwen3_moe", ["q_proj", "o_proj"]),
        ("gpt_neo", "all-linear"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_passes_the_comparison(
    case: str, targets: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, adapter = save_pair(tmp_path, case, targets, dtype, lora_alpha=7, use_rslora=True)
    save_merged(adapter, str(base), tmp_path / "merged")
    assert load(tmp_path / "merged", "auto").dtype == dtype
    expected = logits(PeftModel.from_pretrained(load(base), adapter))
    error = (logits(load(tmp_path / "merged")) - expected).norm() / expected.norm()
    assert float(error) < (1e-5 if dtype == torch.float32 else 0.15)


def test_weights_that_only_the_configuration_ties_stay_apart(tmp_path: Path) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj", "lm_head"])
    change(base / "config.json", tie_word_embeddings=True)
    save_merged(adapter, str(base), tmp_path / "merged")
    expected = logits(PeftModel.from_pretrained(load(base), adapter))
    assert torch.allclose(logits(load(tmp_path / "merged")), expected, atol=1e-4)


def test_it_is_said_that_weights_are_no_longer_tied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flower_split.adapters")
    base, adapter = save_pair(tmp_path, "llama-tied", ["lm_head"])
    save_merged(adapter, str(base), tmp_path / "merged")
    assert "model.embed_tokens.weight and lm_head.weight are no longer tied" in caplog.text


def test_a_merge_that_goes_wrong_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = save_pair(tmp_path, "llama-tied", ["lm_head"])
    with monkeypatch.context() as patch:
        patch.setattr(merging, "_untie", lambda *_: None)
        with pytest.raises(AdapterError, match=r"changed 'model\.embed_tokens\.weight', which"):
            save_merged(adapter, str(base), tmp_path / "merged")
    with monkeypatch.context() as patch:
        true = Linear.get_delta_weight
        patch.setattr(Linear, "get_delta_weight", lambda *given: true(*given) * 1.01)
        with pytest.raises(AdapterError, match="went wrong in 'lm_head': a weight differs by"):
            save_merged(adapter, str(base), tmp_path / "merged")

    def drop_head(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            tensors.pop("lm_head.weight", None)
            save_file(tensors, file, {"format": "pt"})

    true_save = LlamaForCausalLM.save_pretrained

    def lossy(model: Any, folder: Path) -> None:
        true_save(model, folder)
        change(folder / "config.json", tie_word_embeddings=True)
        drop_head(folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", lossy)
    with pytest.raises(AdapterError, match=r"1 tensors differ \(first: 'lm_head\.weight'\)"):
        save_merged(adapter, str(base), tmp_path / "merged")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_adapter_that_is_left_out_is_noticed_in_half_precision(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj"], dtype)
    monkeypatch.setattr("peft.tuners.lora.Linear.merge", lambda self, **_: None)
    with pytest.raises(AdapterError, match=r"went wrong in 'model\.layers\.0"):
        save_merged(adapter, str(base), tmp_path / "merged")


def test_a_base_of_another_model_is_refused(tmp_path: Path) -> None:
    _, adapter = save_pair(tmp_path, "llama", ["q_proj"])
    for case, said in (("gpt2", "no module 'model.layers.0"), ("qwen3", "has the shape")):
        CASE_BY_NAME[case].model().save_pretrained(tmp_path / case)
        if case == "qwen3":
            change(tmp_path / case / "config.json", hidden_size=32)
        with pytest.raises(AdapterError, match=said):
            save_merged(adapter, str(tmp_path / case), tmp_path / "merged")


def test_a_base_that_lacks_tensors_or_is_quantized_is_refused(tmp_path: Path) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj"])
    change(base / "config.json", num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"lacks 12 tensors of a llama model|lacks \d+ tensors"):
        save_merged(adapter, str(base), tmp_path / "merged")
    change(base / "config.json", num_hidden_layers=4, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="it is quantized"):
        save_merged(adapter, str(base), tmp_path / "merged")


def test_a_base_with_an_adapter_beside_it_is_refused(tmp_path: Path) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj"])
    PeftModel.from_pretrained(load(base), adapter).save_pretrained(base)
    with pytest.raises(ModelError, match="has a PEFT adapter"):
        save_merged(adapter, str(base), tmp_path / "merged")


def test_a_base_whose_attention_is_not_installed_is_merged(tmp_path: Path) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj"])
    change(base / "config.json", attn_implementation="flash_attention_2")
    save_merged(adapter, str(base), tmp_path / "merged")
    assert load(tmp_path / "merged").config._attn_implementation == "sdpa"


def test_a_base_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = save_pair(tmp_path, "llama", ["q_proj"])

    def refuse(*_: Any) -> None:
        raise ValueError("the generation config is invalid")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", refuse)
    with pytest.raises(ModelError, match=r"cannot be written with the adapter in it.*Mend its"):
        save_merged(adapter, str(base), tmp_path / "merged")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")
