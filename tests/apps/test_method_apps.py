"""The ready-made apps with another method than plain LoRA: files, checkpoints, export."""

import json

import pytest
import torch
from exporting import flower_split
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flower_split import (
    LocalTransport,
    attach_trunk,
    load_adapter,
    load_client_model,
    load_trunk,
    session_spec,
)
from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.errors import AdapterError, ConfigError
from flower_split.reporting import read_result

IDS = torch.arange(4, 14)[None]
METHODS = {
    "dora": {"peft.use-dora": True, "peft.modules-to-save": "lm_head"},
    "vera": {"peft.type": "vera", "peft.r": 8, "peft.target-modules": "q_proj, down_proj"},
    "adalora": {
        "peft.type": "ADALORA",
        "peft.init-r": 6,
        "peft.target-r": 2,
        "peft.total-step": 20,
        "peft.target-modules": "q_proj, down_proj",
    },
    "pissa": {"peft.init-lora-weights": "pissa"},
    "tokens": {"peft.trainable-token-indices": "5, 7"},
    "prompt": {
        "peft.type": "p_tuning",
        "peft.num-virtual-tokens": 4,
        "peft.encoder-hidden-size": 16,
        "trunk.adapters": "frozen",
    },
}
TYPES = {"adalora": "ADALORA", "vera": "VERA", "prompt": "P_TUNING"}


def run(run_config, nodes=2, **grid):
    in_process = InProcessGrid(client_app, nodes, run_config=run_config, **grid)
    server_app(in_process, Context(RUN_ID, 1, {}, RecordDict(), dict(run_config)))


@pytest.fixture
def values(run_config):
    def of(name, output, **changes):
        rank = {"lora.r": 8} if name in TYPES else {}
        own = {"strategy.min-nodes": 2, "output-dir": str(output), "train.keep-optimizer": False}
        return {**run_config, **own, **rank, **METHODS[name], **changes}

    return of


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[n], t) for n, t in theirs.items())


def logits(tiny, folder):
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    with torch.no_grad():
        return PeftModel.from_pretrained(base, folder).eval()(IDS).logits


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_resumed_exported_and_merged(values, tiny, tmp_path, name):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(values(name, whole))
    report = read_result(whole / "result.json")
    assert report.losses("0")[-1][1] < report.losses("0")[0][1]
    run(values(name, cut, **{"num-server-rounds": 1}))
    run(values(name, cut, resume=True), threads=2)
    assert same(adapter(cut / "adapter"), adapter(whole / "adapter"))

    card = (whole / "adapter" / "README.md").read_text(encoding="utf-8")
    kind = TYPES.get(name, "LORA")
    assert f"- method: {kind} (" in card
    said = flower_split("export", whole, "--out", tmp_path / "exported")
    assert said.exit_code == 0, said.output
    assert same(adapter(tmp_path / "exported"), adapter(whole / "adapter"))
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert config["peft_type"] == kind
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")(IDS).logits
    assert not torch.equal(logits(tiny, tmp_path / "exported")[:, -base.shape[1] :], base)
    for source, more in ((whole / "adapter", []), (whole, ["--merge", tiny / "model"])):
        said = flower_split("export", source, "--out", tmp_path / "m", *more)
        assert said.exit_code == 1 and "merge it there" in said.output
    said = flower_split("export", whole, "--out", tmp_path / "own", "--silo", "0")
    assert said.exit_code == 1


@pytest.mark.exhaustive
def test_a_run_of_another_method_is_not_resumed(values, tmp_path):
    run(values("dora", tmp_path, **{"num-server-rounds": 1}))
    with pytest.raises(Exception, match=r"peft\.init-lora-weights was None and is 'pissa' now"):
        run(values("pissa", tmp_path, resume=True))


@pytest.mark.exhaustive
def test_a_shared_trunk_learns_by_another_method(values, tiny, tmp_path):
    run(values("vera", tmp_path, **{"trunk.adapters": "shared"}))
    before = AutoModelForCausalLM.from_pretrained(tiny / "model")(IDS).logits
    assert not torch.equal(logits(tiny, tmp_path / "adapter"), before)
    trunk = [t for n, t in adapter(tmp_path / "adapter").items() if ".layers.1." in n]
    assert any(tensor.abs().max() > 0 for tensor in trunk)


def test_a_tuned_adalora_is_used_through_the_split(values, tiny, tmp_path):
    run(values("adalora", tmp_path, **{"num-server-rounds": 1}))
    cuts = {"bottom_layers": 1, "top_layers": 1}
    client = load_adapter(load_client_model(str(tiny / "model"), **cuts), tmp_path / "adapter")
    trunk = load_adapter(load_trunk(str(tiny / "model"), **cuts), tmp_path / "adapter")
    spec = session_spec(client, plan=None, trunk_adapters="frozen", purpose="evaluate")
    attach_trunk(client, LocalTransport(trunk, spec))
    with torch.no_grad():
        assert torch.equal(client(IDS).logits, logits(tiny, tmp_path / "adapter"))


def test_an_adalora_that_peft_has_cut_to_its_ranks_is_refused_on_a_cut_model(tiny, tmp_path):
    config = AdaLoraConfig(init_r=4, target_r=1, total_step=3, target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    tuned = get_peft_model(base, config)
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    tuned.base_model.update_and_allocate(1)
    tuned.save_pretrained(tmp_path)
    client = load_client_model(str(tiny / "model"), bottom_layers=1, top_layers=1)
    with pytest.raises(AdapterError, match="rank_pattern"):
        load_adapter(client, tmp_path)


@pytest.mark.parametrize("strategy", ["fedavglora", "flora", "scaffoldlora", "hetlora"])
def test_strategies_of_low_rank_name_what_works(values, tmp_path, strategy):
    with pytest.raises(ConfigError, match=f"{strategy}.*peft.type VERA.*'fedavg'"):
        run(values("vera", tmp_path, **{"strategy.name": strategy}))
    with pytest.raises(ConfigError, match=f"{strategy}.*peft.type P_TUNING.*'fedavg'"):
        run(values("prompt", tmp_path, **{"strategy.name": strategy}))


def test_personal_parts_and_own_ranks_are_of_plain_lora(values, tmp_path):
    with pytest.raises(ConfigError, match=r"leave strategy\.personal empty"):
        run(values("dora", tmp_path, **{"strategy.personal": "layers.3"}))
    with pytest.raises(Exception, match="lora-r or lora-alpha, which are for plain LoRA"):
        run(values("dora", tmp_path), node_config={"lora-r": 4})


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("strategy", ["fedadam", "fedmedian", "fedprox"])
def test_flowers_own_strategies_take_any_method(values, tmp_path, strategy):
    options = {"strategy.proximal-mu": 0.1} if strategy == "fedprox" else {}
    run(values("vera", tmp_path, **{"strategy.name": strategy, **options}))
    assert adapter(tmp_path / "adapter")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["dora", "adalora"])
def test_every_silo_alone_with_another_method(values, tmp_path, name):
    run(values(name, tmp_path, **{"baseline-alone": True}))
    report = read_result(tmp_path / "result.json")
    assert report.alone[-1].evaluate["0"]["eval-loss"] > 0
