"""A trained adapter in use through the split: the text is the whole model's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import make_batch, make_pair
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny_models import tiny_model

from flower_split import (
    GrpcTransport,
    LocalTransport,
    TrunkServer,
    attach_trunk,
    load_adapter,
    session_spec,
    split_model,
)
from flower_split.errors import AdapterError, ConfigError, HandshakeError
from flower_split.server.engine import TrunkEngine

METHODS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    "dora": LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, target_modules=["q_proj"]),
    "pattern": LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], rank_pattern={"layers.2.*": 2}
    ),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=[]
    ),
    "head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj", "lm_head"]),
    "head-alone": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"]),
    "first-layer": LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], layers_to_transform=[0]
    ),
    "embeddings": LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens", "up_proj"], exclude_modules="x"
    ),
    "tokens": LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=[3, 7]
    ),
    "whole-head": LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "prompts": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def saved(folder: Path, method: str = "lora", seed: int = 0) -> Path:
    """A folder with an adapter none of whose values is at its start."""
    model = get_peft_model(tiny_model(), METHODS[method])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def parties(folder: Path, trunks: Path | None = None) -> tuple[Any, Any]:
    client, trunk = split_model(tiny_model(), 1, 2)
    return load_adapter(client, folder), load_adapter(trunk, trunks or folder)


def spec_of(client: Any) -> Any:
    return session_spec(client, plan=None, trunk_adapters="frozen", purpose="evaluate")


@pytest.mark.sampled(keep=4)
@pytest.mark.medium
@pytest.mark.parametrize("method", METHODS)
def test_its_text_is_the_whole_models(tmp_path: Path, method: str) -> None:
    folder = saved(tmp_path, method)
    client, trunk = parties(folder)
    whole = PeftModel.from_pretrained(tiny_model(), folder).eval()
    batch = {k: v for k, v in make_batch(rows=1).items() if k != "labels"}
    with (
        TrunkServer(trunk) as server,
        GrpcTransport(server.address, spec_of(client)) as transport,
        torch.no_grad(),
    ):
        attach_trunk(client, transport)
        assert torch.equal(client(**batch).logits, whole(**batch).logits)
        ours, theirs = (m.generate(**batch, max_new_tokens=12) for m in (client, whole))
        assert torch.equal(ours, theirs)
        with client.disable_adapter(), whole.disable_adapter():
            assert torch.equal(client(**batch).logits, whole(**batch).logits)
        assert torch.equal(client(**batch).logits, whole(**batch).logits)


@pytest.mark.medium
def test_both_must_have_loaded_the_same(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other", seed=1)
    client, trunk = parties(one, other)
    bare, bare_trunk = split_model(tiny_model(), 1, 2)
    for silo, engine in ((client, trunk), (bare, trunk), (client, bare_trunk)):
        with pytest.raises(HandshakeError, match="differ in loaded_adapter"):
            LocalTransport(engine, spec_of(silo))


def test_another_adapter_or_scale_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    client, trunk = parties(folder)
    attach_trunk(client, LocalTransport(trunk, spec_of(client)))
    with torch.no_grad():
        client(**make_batch())
        client.load_adapter(saved(tmp_path / "other", seed=1), "other")
        client.set_adapter("other")
        with pytest.raises(AdapterError, match=r"tensors of the trunk's layers|other is active"):
            client(**make_batch())


@pytest.mark.medium
def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    client, trunk = split_model(tiny_model(), 1, 2)
    with pytest.raises(AdapterError, match="is no PEFT folder"):
        load_adapter(client, tmp_path)
    folder = saved(tmp_path / "a")
    with pytest.raises(AdapterError, match="before attach_trunk"):
        load_adapter(tiny_model(), folder)
    loaded = load_adapter(client, folder)
    with pytest.raises(AdapterError, match="has an adapter already"):
        load_adapter(loaded, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"does not fit|cannot be read"):
        load_adapter(split_model(tiny_model(), 1, 2)[0], folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="save it again with PEFT's save_pretrained"):
        load_adapter(split_model(tiny_model(), 1, 2)[0], folder)
    other = saved(tmp_path / "b")
    plan = make_pair().plan
    with pytest.raises(ConfigError, match="a loaded adapter is frozen"):
        TrunkEngine(load_adapter(trunk, other), plan=plan)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "NOPE"}, "PEFT has no method 'NOPE'"),
        ({"r": "8"}, "does not fit the model"),
        ({"lora_alpha": None}, "does not fit the model"),
        ({"target_modules": 5}, "does not fit the model|cannot be read"),
    ],
)
def test_settings_that_peft_cannot_use_are_an_error_of_ours(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    folder = saved(tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    for part in split_model(tiny_model(), 1, 2):
        with pytest.raises(AdapterError, match=said):
            load_adapter(part, folder)
