"""What a cut is said to cost, held against what toy runs take."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from toy_trunk import toy_config

from flower_split.adapters import resolve_plan, wrap
from flower_split.apps.checking import sizes
from flower_split.apps.checking.activations import ENDS, kept_activations
from flower_split.apps.checking.sizes import cut_size, in_flight, step_bytes
from flower_split.config.sections import (
    CutConfig,
    LoraSettings,
    ModelConfig,
    PeftSettings,
    TrainConfig,
    WireConfig,
)
from flower_split.segments import load_skeleton

SUPPORT = Path(__file__).parents[2] / "support"
LORA = LoraSettings(r=8, alpha=16.0, target_modules=("all-linear",))
WITHIN = 0.15


def config(bottom: int = 1, top: int = 1, rows: int = 4, tokens: int = 64, **fields: object):  # type: ignore[no-untyped-def]
    return replace(
        toy_config(),
        split=CutConfig(bottom_layers=bottom, top_layers=top),
        train=TrainConfig(batch_size=rows, max_length=tokens),
        lora=LORA,
        **fields,  # type: ignore[arg-type]
    )


def made(skeleton, given):  # type: ignore[no-untyped-def]
    return cut_size(skeleton, resolve_plan(skeleton, LORA, PeftSettings()), given)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_kept_is_what_autograd_keeps_of_the_model_itself(kind: str) -> None:
    without = {"attn_pdrop": 0.0} if kind == "gpt2" else {}  # whose masks a CPU keeps
    model = tiny_model(kind, layers=3, **without).float()
    skeleton = load_skeleton(model.config)
    plan = resolve_plan(skeleton, LORA, PeftSettings())
    found = kept_activations(skeleton, plan, rows=2, tokens=16, dtype=torch.float32)
    assert set(found) == {ENDS, 0, 1, 2}
    assert found[1] == found[2]
    wrapped = wrap(model, plan)
    wrapped.train()
    own = {part.untyped_storage().data_ptr() for part in wrapped.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.zeros(2, 16, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        wrapped(input_ids=ids, labels=ids)
    held = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    assert sum(found.values()) == pytest.approx(held, rel=0.05)
    assert next(skeleton.parameters()).is_meta


@pytest.mark.medium
def test_parties_hold_the_whole_model_between_them() -> None:
    model = tiny_model(layers=5)
    skeleton = load_skeleton(model.config)
    found = made(skeleton, config())
    assert found.parameters == sum(part.numel() for part in model.parameters())
    assert found.silo.weights_bytes == 4 * found.silo.parameters
    assert found.trunk.adapter_bytes == 16 * found.trunk.adapter
    more = made(skeleton, config(bottom=2))
    assert more.silo.bytes > found.silo.bytes and more.trunk.bytes < found.trunk.bytes
    assert 0 < found.share < more.share < 1


@pytest.mark.medium
def test_settings_change_what_they_should() -> None:
    skeleton = load_skeleton(tiny_model(layers=4).config)
    usual = made(skeleton, config())
    half = made(skeleton, config(model=ModelConfig(name="toy", dtype="bfloat16")))
    assert half.silo.weights_bytes == usual.silo.weights_bytes // 2
    nf4 = made(skeleton, config(model=ModelConfig(name="toy", quantization="nf4")))
    assert nf4.trunk.weights_bytes < usual.trunk.weights_bytes / 5
    int8 = made(skeleton, config(wire=WireConfig.uniform("int8")))
    assert 0.25 < int8.step_bytes / usual.step_bytes < 0.35
    assert step_bytes(config(), 64, "nf4") < step_bytes(config(), 64, "int8")
    several = replace(config(), train=TrainConfig(accumulation=4, in_flight=2))
    assert [in_flight(config()), in_flight(several)] == [1, 2]


def test_a_model_that_looks_into_its_tensors_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = load_skeleton(tiny_model(layers=4).config)
    counted = made(skeleton, config())

    def looks(*_: object, **__: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr(sizes, "kept_activations", looks)
    estimated = made(skeleton, config())
    assert estimated.trunk.activation_bytes > 0.5 * counted.trunk.activation_bytes


@pytest.mark.exhaustive
def test_a_toy_run_takes_what_is_said(tmp_path: Path) -> None:
    model = tiny_model(
        layers=6,
        hidden_size=256,
        intermediate_size=704,
        num_attention_heads=8,
        vocab_size=8192,
        max_position_embeddings=512,
    ).float()
    model.save_pretrained(tmp_path)
    skeleton = load_skeleton(model.config)
    for bottom, top, rows, tokens in ((1, 1, 4, 256), (2, 2, 8, 256)):
        said = made(skeleton, config(bottom, top, rows, tokens))
        numbers = [str(one) for one in (bottom, top, rows, tokens)]
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "toy_run_memory.py"), str(tmp_path), *numbers],
            capture_output=True,
            text=True,
            check=True,
        )
        memory, payload = map(int, done.stdout.split())
        assert said.silo.bytes + said.trunk.bytes == pytest.approx(memory, rel=WITHIN)
        assert said.step_bytes == pytest.approx(payload, rel=WITHIN)
