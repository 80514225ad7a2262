"""Adapters of the parts are the adapter of the whole, made and read by PEFT."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from tiny_models import CASE_BY_NAME, tiny_model

from flower_split.adapters import (
    TrunkAdapters,
    initial_state,
    load_state,
    read_state,
    resolve_lora,
    save_adapter,
    split_state,
    wrap,
)
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError
from flower_split.segments import layers_path, split_model

TARGETS = {
    "llama": [("all-linear",), ("q_proj", "v_proj"), ("embed_tokens", "down_proj")],
    "gpt2": [("all-linear",), ("c_attn",), ("wte", "c_fc")],
}
CASES = [(kind, targets) for kind, choices in TARGETS.items() for targets in choices]


@pytest.mark.parametrize(("kind", "targets"), CASES)
@pytest.mark.parametrize("cuts", [(1, 1), (0, 2), (0, 0)])
def test_the_parts_names_and_shapes_are_the_wholes(
    kind: str, targets: tuple[str, ...], cuts: tuple[int, int]
) -> None:
    model = tiny_model(kind, layers=4)
    lora = LoraSettings(r=3, target_modules=targets)
    plan = resolve_lora(model, lora)
    whole = get_peft_model(copy.deepcopy(model), plan.peft_config())
    expected = get_peft_model_state_dict(whole, save_embedding_layers=False)
    state = initial_state(model, lora, seed=0)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in expected.items()}
    assert list(state) == list(plan.names)
    assert read_state(whole).keys() == expected.keys()

    client, trunk = split_model(model, *cuts)
    client_part, trunk_part = split_state(state, layers_path(model), trunk.cuts)
    wrapped = wrap(client, plan)
    assert read_state(wrapped).keys() == client_part.keys()
    adapters = TrunkAdapters(trunk, plan)
    assert adapters.state("master").keys() == trunk_part.keys()
    assert {**client_part, **trunk_part}.keys() == state.keys()
    assert not any(p.requires_grad for n, p in trunk.named_parameters() if "lora_" not in n)


def test_the_initialisation_is_pefts_and_a_function_of_the_seed() -> None:
    model, lora = tiny_model(layers=4), LoraSettings(r=3)
    first, again, other = (initial_state(model, lora, seed=s) for s in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if "lora_A" in name:
            bound = 1 / tensor.shape[1] ** 0.5
            assert tensor.abs().max() <= bound
            assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.4)
            assert not torch.equal(tensor, other[name])
        else:
            assert not tensor.any()


def test_the_initialisation_keeps_the_callers_random_numbers() -> None:
    model = tiny_model(layers=4)
    before = torch.get_rng_state()
    initial_state(model, LoraSettings(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_targets_are_named_with_those_that_exist() -> None:
    with pytest.raises(AdapterError, match=r"'qproj'.*q_proj"):
        resolve_lora(tiny_model(layers=4), LoraSettings(target_modules=("q_proj", "qproj")))
    with pytest.raises(AdapterError, match="cannot carry"):
        resolve_lora(tiny_model(layers=4), LoraSettings(target_modules=("input_layernorm",)))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_exported_adapter_loads_into_the_uncut_model_with_equal_logits(
    kind: str, rslora: bool, tmp_path: Path
) -> None:
    model = tiny_model(kind, layers=4)
    lora = LoraSettings(r=3, alpha=5.0, rslora=rslora)
    plan = resolve_lora(model, lora)
    state = {n: torch.randn_like(t) * 0.1 for n, t in initial_state(model, lora, seed=0).items()}
    folder = save_adapter(state, plan, tmp_path / "adapter", base_model="base")
    assert sorted(p.name for p in folder.iterdir()) >= [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3

    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    trained = get_peft_model(copy.deepcopy(model), plan.peft_config())
    load_state(trained, state)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        logits = loaded.eval()(ids).logits
        assert torch.equal(logits, trained.eval()(ids).logits)
        assert not torch.allclose(logits, model(ids).logits)


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    model = tiny_model(layers=4)
    plan = resolve_lora(model, LoraSettings(r=2))
    state = initial_state(model, LoraSettings(r=2), seed=0)
    whole = get_peft_model(model, plan.peft_config())
    before = read_state(whole)
    name = next(iter(state))
    broken = [
        ({n: t for n, t in state.items() if n != name}, "1 missing"),
        ({**state, "other": torch.zeros(1)}, "1 unknown"),
        ({**state, name: torch.zeros(3, 3)}, "has shape"),
        ({**state, name: torch.full_like(state[name], float("nan"))}, "not finite"),
    ]
    for wrong, says in broken:
        with pytest.raises(AdapterError, match=says):
            load_state(whole, wrong)
        with pytest.raises(AdapterError, match=says):
            save_adapter(wrong, plan, tmp_path / "adapter", base_model="base")
    assert all(torch.equal(t, before[n]) for n, t in read_state(whole).items())
    assert not (tmp_path / "adapter").exists()


def test_a_trunk_without_targets_is_refused() -> None:
    model = tiny_model(layers=4)
    plan = resolve_lora(model, LoraSettings(target_modules=("embed_tokens",)))
    _, trunk = split_model(model, 1, 1)
    with pytest.raises(AdapterError, match="frozen"):
        TrunkAdapters(trunk, plan)


@pytest.mark.parametrize("case", ["qwen3_moe", "mixtral"])
def test_experts_that_are_no_modules_are_refused_before_anything_is_wrapped(case):
    with pytest.raises(AdapterError, match=r"reaches the experts of this .* name the modules"):
        resolve_lora(CASE_BY_NAME[case].model(), LoraSettings(target_modules=("all-linear",)))
