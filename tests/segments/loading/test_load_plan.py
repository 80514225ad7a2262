"""Segments from a checkpoint equal those of the whole model."""

import copy
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import CASE_BY_NAME, CASES, LAYERS, Case, attentions
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from flower_split.errors import (
    ConfigError,
    CutError,
    ModelError,
    UnsupportedFamilyError,
    WeightsError,
)
from flower_split.segments import (
    Cuts,
    Family,
    Trunk,
    TrunkSlot,
    fingerprint,
    join,
    layer_index,
    layers_path,
    load_client_model,
    load_skeleton,
    load_trunk,
    split_model,
)
from flower_split.segments.loading import load_plan, stock_loader

CUTS = {"bottom_layers": 1, "top_layers": 1}
ONE_OF_EACH = list({case.model_type: case for case in CASES}.values())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, also those that no checkpoint has."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def assert_same(loaded: nn.Module, expected: nn.Module) -> None:
    ours, theirs = tensors_of(loaded), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in ours.items():
        assert tensor.device.type == "cpu", name
        assert tensor.dtype == theirs[name].dtype, name
        assert tensor.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(tensor, theirs[name]), name


def logits_of(model: nn.Module) -> Tensor:
    tokens = torch.arange(3, 21).reshape(2, 9)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits


def assert_loads(folder: Path, dtype: str, attention: str) -> tuple[PreTrainedModel, Trunk]:
    """Load both parties' segments and compare them with those of the whole model."""
    whole = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    client, trunk = split_model(whole, **CUTS)
    loaded_client = load_client_model(folder, **CUTS, dtype=dtype, attention=attention)
    loaded_trunk = load_trunk(folder, **CUTS, dtype=dtype, attention=attention)

    assert type(loaded_client) is type(loaded_trunk.model) is type(whole)
    assert not any(m.training for m in (*loaded_client.modules(), *loaded_trunk.modules()))
    assert_same(loaded_client, client)
    assert_same(loaded_trunk, trunk)
    (slot,) = (m for m in loaded_client.modules() if isinstance(m, TrunkSlot))
    assert slot.cuts == loaded_trunk.cuts == trunk.cuts
    assert slot.fingerprint == loaded_trunk.fingerprint == trunk.fingerprint
    join(loaded_client, loaded_trunk)
    logits = logits_of(loaded_client)
    assert torch.equal(logits, logits_of(whole))
    assert logits.isfinite().all()
    return loaded_client, loaded_trunk


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Replace or take away tensors of the one weights file in `folder`."""
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(file), **change}
    save_file({n: t for n, t in tensors.items() if t is not None}, file, {"format": "pt"})


@pytest.mark.sampled(keep=8)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_file_in_float32(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.save_pretrained(tmp_path)
    client, trunk = assert_loads(tmp_path, "float32", attentions(case)[-1])
    marks = {
        trunk.fingerprint,
        fingerprint(client.config),
        fingerprint(load_skeleton(tmp_path).config),
        split_model(model, **CUTS)[1].fingerprint,
    }
    assert len(marks) == 1


@pytest.mark.sampled(keep=6)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_shards_in_bfloat16(case: Case, tmp_path: Path) -> None:
    case.model().save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_loads(tmp_path, "bfloat16", "eager")


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "mixtral"])
def test_half_precision_checkpoint_in_float16_and_float32(name: str, tmp_path: Path) -> None:
    CASE_BY_NAME[name].model().half().save_pretrained(tmp_path)
    for dtype in ("float16", "float32"):
        assert_loads(tmp_path, dtype, "eager")


@pytest.mark.parametrize(("bottom", "top"), [(0, 0), (0, LAYERS - 1), (LAYERS - 1, 0), (2, 1)])
def test_each_tensor_is_held_by_one_party(llama: Path, bottom: int, top: int) -> None:
    client = load_client_model(llama, bottom_layers=bottom, top_layers=top)
    trunk = load_trunk(llama, bottom_layers=bottom, top_layers=top)
    whole = load_file(llama / "model.safetensors")
    ours, theirs = client.state_dict(), trunk.model.state_dict()
    assert ours.keys().isdisjoint(theirs)
    assert ours.keys() | theirs.keys() == whole.keys()
    assert {layer_index(name, "model.layers") for name in theirs} == set(
        range(bottom, LAYERS - top)
    )


def test_fingerprint_where_the_config_leaves_a_value_open(tmp_path: Path) -> None:
    model = CASE_BY_NAME["falcon-new"].model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config.pop("num_ln_in_parallel_attn") == 2
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, trunk = assert_loads(tmp_path, "float32", "eager")
    assert trunk.fingerprint == split_model(model, **CUTS)[1].fingerprint
    assert trunk.fingerprint == fingerprint(load_skeleton(tmp_path).config)


def test_gpt2_checkpoint_without_the_models_prefix(tmp_path: Path) -> None:
    model = CASE_BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    # As the first GPT-2 checkpoints were written: with the causal masks as buffers.
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(LAYERS)}
    save_file({**old, **masks}, tmp_path / "model.safetensors", {"format": "pt"})
    assert_loads(tmp_path, "float32", "eager")


def test_layers_beyond_the_model_are_not_read(llama: Path) -> None:
    expected = load_client_model(llama, **CUTS).state_dict()
    rewrite(llama, {f"model.layers.{LAYERS}.self_attn.q_proj.weight": torch.zeros(3)})
    assert_loads(llama, "float32", "eager")
    found = load_client_model(llama, **CUTS).state_dict()
    assert found.keys() == expected.keys()


@pytest.mark.medium
def test_threads_may_load_at_once(llama: Path) -> None:
    expected = load_trunk(llama, **CUTS, dtype="bfloat16"), load_client_model(llama, **CUTS)
    with ThreadPoolExecutor(4) as pool:
        trunks = [pool.submit(load_trunk, llama, **CUTS, dtype="bfloat16") for _ in range(4)]
        clients = [pool.submit(load_client_model, llama, **CUTS) for _ in range(4)]
    for trunk, client in zip(trunks, clients, strict=True):
        assert_same(trunk.result(), expected[0])
        assert_same(client.result(), expected[1])
    assert torch.get_default_dtype() is torch.float32


def test_no_log_and_no_progress_bar(
    llama: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(llama, {"model.other.weight": torch.zeros(3)})
    capfd.readouterr()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        load_client_model(llama, **CUTS)
        load_trunk(llama, **CUTS)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_source_is_the_models_name(llama: Path) -> None:
    client = load_client_model(llama, **CUTS)
    assert client.name_or_path == client.config.name_or_path == str(llama)
    adapted = get_peft_model(client, LoraConfig(r=2, target_modules=["q_proj"]))
    assert adapted.peft_config["default"].base_model_name_or_path == str(llama)


def test_loaded_client_is_an_ordinary_model_of_its_own_tensors(llama: Path) -> None:
    client = load_client_model(llama, **CUTS)
    assert_same(copy.deepcopy(client), client)
    path = layers_path(client)
    assert {layer_index(name, path) for name in client.state_dict()} == {None, 0, LAYERS - 1}


def test_tensors_do_not_depend_on_the_file(llama: Path) -> None:
    trunk = load_trunk(llama, **CUTS)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    file = llama / "model.safetensors"
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_generation_config_of_the_checkpoint(llama: Path) -> None:
    GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3).save_pretrained(llama)
    generation = load_client_model(llama, **CUTS).generation_config
    assert (generation.max_new_tokens, generation.do_sample, generation.top_k) == (7, True, 3)
    (llama / "generation_config.json").unlink()
    assert load_client_model(llama, **CUTS).generation_config.max_new_tokens is None
    (llama / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"generation_config\.json cannot be read"):
        load_client_model(llama, **CUTS)


@pytest.mark.parametrize(
    ("name", "load", "other"),
    [
        ("model.layers.0.mlp.up_proj.weight", load_client_model, load_trunk),
        ("model.layers.2.mlp.up_proj.weight", load_trunk, load_client_model),
        ("model.norm.weight", load_client_model, load_trunk),
    ],
)
def test_missing_tensor(llama: Path, name: str, load: type, other: type) -> None:
    rewrite(llama, {name: None})
    with pytest.raises(WeightsError, match=rf"model\.safetensors lacks the tensor '{name}'"):
        load(llama, **CUTS)
    other(llama, **CUTS)


def test_missing_tied_head_is_not_missing(tmp_path: Path) -> None:
    CASE_BY_NAME["llama-tied"].model().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    client = load_client_model(tmp_path, **CUTS)
    assert client.lm_head.weight is client.model.embed_tokens.weight


def test_wrong_shape(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(llama, {name: torch.zeros(5, 7)})
    expected = rf"'{name}' in .*model\.safetensors has the shape \(5, 7\), .* \(48, 32\)"
    with pytest.raises(WeightsError, match=expected):
        load_client_model(llama, **CUTS)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    load_trunk(llama, **CUTS)


@pytest.mark.parametrize("part", ["w1", "w2", "w3"])
def test_experts_that_do_not_fit_together(part: str, tmp_path: Path) -> None:
    CASE_BY_NAME["mixtral"].model().save_pretrained(tmp_path)
    name = f"model.layers.1.block_sparse_moe.experts.2.{part}.weight"
    shape = load_file(tmp_path / "model.safetensors")[name].shape
    rewrite(tmp_path, {name: torch.zeros(5, 7)})
    expected = f"{name}' has the shape (5, 7), expected {tuple(shape)}"
    with pytest.raises(WeightsError, match=re.escape(expected)):
        load_trunk(tmp_path, **CUTS)
    rewrite(tmp_path, {name: None})
    with pytest.raises(WeightsError, match=re.escape(f"{name}' is missing")):
        load_trunk(tmp_path, **CUTS)
    load_client_model(tmp_path, **CUTS)


@pytest.mark.parametrize("load", [load_client_model, load_trunk])
def test_cut_outside_the_model_is_refused_before_weights_are_read(llama: Path, load: type) -> None:
    (llama / "model.safetensors").unlink()
    for bottom, top in ((LAYERS, 0), (2, 2), (-1, 0), (0, 99)):
        with pytest.raises(CutError):
            load(llama, bottom_layers=bottom, top_layers=top)


def test_what_cannot_be_cut_is_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text(encoding="utf-8"))

    def with_values(**values: object) -> Path:
        (llama / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")
        return llama

    with pytest.raises(UnsupportedFamilyError, match=r"bart with an encoder"):
        load_trunk(with_values(model_type="bart"), **CUTS)
    with pytest.raises(UnsupportedFamilyError, match="no_such_family"):
        load_trunk(with_values(model_type="no_such_family"), **CUTS)
    with pytest.raises(ModelError, match="quantized"):
        load_trunk(with_values(quantization_config={"quant_method": "fp8"}), **CUTS)


def test_refusal_of_the_punched_model_keeps_its_kind(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: PreTrainedModel, cuts: Cuts, family: Family) -> None:
        raise UnsupportedFamilyError("a tensor that belongs to no module")

    monkeypatch.setattr(load_plan, "punch_trunk", refuse)
    with pytest.raises(UnsupportedFamilyError, match="belongs to no module"):
        load_trunk(llama, **CUTS)


def test_unknown_dtype_and_attention(llama: Path) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of"):
        load_trunk(llama, **CUTS, dtype="int8")
    with pytest.raises(ConfigError, match="attention must be one of"):
        load_trunk(llama, **CUTS, attention="flash")


def test_attention_that_the_family_does_not_have(tmp_path: Path) -> None:
    CASE_BY_NAME["gptj"].model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no sdpa attention for gptj; set model\.attention"):
        load_client_model(tmp_path, **CUTS, attention="sdpa")
    assert load_client_model(tmp_path, **CUTS).config._attn_implementation == "eager"


def test_attention_is_sdpa_where_the_family_has_it(llama: Path) -> None:
    assert load_trunk(llama, **CUTS).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "qwen3_moe"])
def test_the_stock_loader_puts_a_model_with_holes_on_a_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked as for a GPU, to put every tensor on the CPU, it loads the same."""
    case = CASE_BY_NAME[name]
    case.model().save_pretrained(tmp_path)
    client, trunk = load_client_model(tmp_path, **CUTS), load_trunk(tmp_path, **CUTS)
    asked = []

    def placement(device: torch.device) -> dict[str, object]:
        asked.append(device)
        return {"device_map": {"": device}}

    monkeypatch.setattr(stock_loader, "placement", placement)
    assert_same(load_client_model(tmp_path, **CUTS), client)
    assert_same(load_trunk(tmp_path, **CUTS), trunk)
    assert asked == [torch.device("cpu")] * 2


def test_only_another_device_than_the_cpu_is_asked_for() -> None:
    assert stock_loader.placement(torch.device("cpu")) == {}
    cuda = torch.device("cuda", 1)
    assert stock_loader.placement(cuda) == {"device_map": {"": cuda}}


def test_a_device_that_is_not_there_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="cuda:99"):
        load_trunk("no such folder", **CUTS, device="cuda:99")
