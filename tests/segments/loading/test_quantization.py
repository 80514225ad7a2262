"""Quantized base weights: a cut model computes as the uncut model that is quantized alike."""

import gc
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import make_batch, take_steps
from peft import get_peft_model
from quantized_models import quantized
from tiny_models import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from flower_split import (
    LocalTransport,
    SplitAdamW,
    attach_trunk,
    load_client_model,
    load_trunk,
    session_spec,
    split_model,
)
from flower_split.adapters import initial_state, load_state, resolve_lora, split_state, wrap
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import LoraSettings
from flower_split.errors import ConfigError, HandshakeError, ModelError
from flower_split.segments import layers_path
from flower_split.segments.loading import quantization
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

pytestmark = pytest.mark.medium

KINDS = ("nf4", "nf4-double", "int8", "torchao-int8")
LORA = LoraSettings(r=4, alpha=8.0)
CUTS = {"bottom_layers": 1, "top_layers": 2}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantized") / request.param
    wide = {"n_embd": 64} if request.param == "gpt2" else {}
    if request.param == "llama":
        wide = {"hidden_size": 64, "intermediate_size": 128}
    tiny_model(request.param, **wide).save_pretrained(place)
    return place


def adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_state(model, LORA, seed=1).items()
    }


def cut(folder: Path, kind: str, **engine: Any) -> tuple[Any, TrunkEngine]:
    """A client model and its trunk, both quantized while they are loaded."""
    uncut = tiny_skeleton(folder)
    plan = resolve_lora(uncut, LORA)
    client = load_client_model(folder, **CUTS, quantization=kind)
    trunk = load_trunk(folder, **CUTS, quantization=kind)
    own, other = split_state(adapter(uncut), layers_path(uncut), trunk.cuts)
    client = wrap(client, plan)
    load_state(client, own)
    hosted = TrunkEngine(trunk, plan=plan, initial=other, **engine)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(hosted, spec))
    return client, hosted


def tiny_skeleton(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_the_uncut_quantized_models(folder: Path, kind: str) -> None:
    if kind == "torchao-int8" and folder.name == "gpt2":
        with pytest.raises(ModelError, match=r"torchao quantizes nothing of this gpt2 model"):
            cut(folder, kind)
        return
    client, _ = cut(folder, kind)
    uncut = tiny_skeleton(folder)
    whole = get_peft_model(quantized(folder, kind), resolve_lora(uncut, LORA).peft_config())
    load_state(whole, adapter(uncut))
    own = [p for p in whole.parameters() if p.requires_grad]
    both = (
        (client, SplitAdamW(client, lr=1e-2)),
        (whole, torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)),
    )
    for step in range(3):
        losses = []
        for model, optimizer in both:
            loss = model(**make_batch(seed=step)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == losses[1]
    plain = tiny_skeleton(folder)(**make_batch(seed=0)).loss.item()
    assert abs(losses[1] - plain) > 1e-6  # it was quantized


def test_an_int8_model_in_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="modules cannot share their weights"):
        split_model(quantized(folder, "int8"), 1, 2)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "torchao-int8"])
def test_a_quantized_model_in_memory_is_cut_as_any_other(folder: Path, kind: str) -> None:
    model = quantized(folder, kind).eval()
    client, trunk = split_model(model, 1, 2)
    attach_trunk(client, LocalTransport(trunk))
    with torch.no_grad():
        batch = make_batch()
        assert torch.equal(client(**batch).logits, model(**batch).logits)


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_an_evaluation_of_one_silo_changes_no_training_of_another(folder: Path, kind: str) -> None:
    """Where the processor has AVX512 BF16, bitsandbytes repacks weights that are evaluated."""

    def losses(evaluated: bool) -> list[float]:
        client, engine = cut(folder, kind)
        if evaluated:
            other = wrap(load_client_model(folder, **CUTS, quantization=kind), engine.plan)
            spec = session_spec(
                other, plan=engine.plan, trunk_adapters="federated", purpose="evaluate"
            )
            attach_trunk(other, LocalTransport(engine, spec))
            with torch.no_grad():
                for model in (client, other):
                    model.eval()(**make_batch())
        return take_steps(client, SplitAdamW(client, lr=1e-2))

    assert losses(evaluated=True) == losses(evaluated=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("nf4", "bitsandbytes.functional.quantize_4bit"),
        ("torchao-int8", "torchao.quantization.Int8Tensor.from_hp"),
    ],
)
def test_each_tensor_is_quantized_as_it_is_read(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than two of the layers' weights are there in full precision."""
    tiny_model(layers=8, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    size = 64 * 128
    most = 0

    gc.collect()
    gc.freeze()  # what the tests before left is not looked through again and again
    quantize = pkgutil.resolve_name(name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        gc.collect()
        full = [
            t
            for t in gc.get_objects()
            if type(t) in (Tensor, torch.nn.Parameter)
            and t.dtype == torch.float32
            and t.numel() >= size
            and not t.is_meta
        ]
        most = max(most, len({t.untyped_storage().data_ptr() for t in full}))
        return quantize(*args, **kwargs)

    monkeypatch.setattr(name, counting)
    try:
        load_trunk(tmp_path, **CUTS, quantization=kind)
    finally:
        gc.unfreeze()
    assert 0 < most <= 4, most


@pytest.mark.medium
def test_both_ends_must_be_quantized_alike(folder: Path) -> None:
    client, _ = cut(folder, "nf4")
    plain = load_client_model(folder, **CUTS)
    for kind in ("none", "int8", "nf4-double", *(["torchao-int8"] * (folder.name == "llama"))):
        trunk = load_trunk(folder, **CUTS, quantization=kind)
        for silo in (client, plain):
            if kind == "none" and silo is plain:
                continue
            spec = session_spec(silo, plan=None, trunk_adapters="frozen")
            with pytest.raises(HandshakeError, match="differ in fingerprint"):
                LocalTransport(trunk, spec)


@pytest.mark.medium
def test_rows_of_several_silos_share_no_batch(folder: Path) -> None:
    values = {"model.name": "x", "model.quantization": "int8", "trunk.batching": True}
    with pytest.raises(ConfigError, match="not computed each for itself"):
        read_run_config(values)
    client, _ = cut(folder, "int8", batching=BatchSettings(batching=True))
    expected, _ = cut(folder, "int8")
    with torch.no_grad():
        assert torch.equal(client(**make_batch()).logits, expected(**make_batch()).logits)


def test_without_bitsandbytes_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flower-split\[quantization\]'"):
        load_trunk(folder, **CUTS, quantization="nf4")
    with pytest.raises(ConfigError, match="needs torchao, which is not installed"):
        load_trunk(folder, **CUTS, quantization="torchao-int8")
    with pytest.raises(ConfigError, match="quantization must be one of"):
        load_trunk(folder, **CUTS, quantization="gguf")


def test_weights_that_are_quantized_already_are_refused(folder: Path, tmp_path: Path) -> None:
    quantized(folder, "nf4").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="quantized already, by bitsandbytes"):
        load_trunk(tmp_path, **CUTS)
