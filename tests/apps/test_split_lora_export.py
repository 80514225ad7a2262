"""Exports of split runs with LoRA strategies compute what the silos' split models did."""

import pytest
import torch
from exporting import flower_split, logits_with
from split_run import run_split
from steps import run_config
from tiny_checkpoint import save_tiny_model
from transformers import AutoModelForCausalLM
from uncut_model import logits

from flower_split.adapters.reading import read_adapter_folder

ROUNDS, SILO = 2, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def ran(folder, state_home, tmp_path):
    """Runs a strategy: the run's output folder, and what the silos' models computed."""

    def run(**changes):
        output, seen = tmp_path / "output", {}
        values = run_config(folder, **{"output-dir": str(output), **changes})
        result, _ = run_split(values, seen=seen)
        assert not any(record.failure for record in result.history)
        return output, {silo: seen["evaluate", ROUNDS, silo] for silo in range(3)}

    return run


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", ["federated", "frozen"])
@pytest.mark.parametrize("name", ["flora", "fedexlora", "flexlora"])
def test_what_is_folded_is_part_of_the_adapter(folder, ran, tmp_path, name, mode):
    output, computed = ran(**{"strategy.name": name, "trunk.adapters": mode})
    said = flower_split("export", output, "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    ranks = [
        t.shape[0] for n, t in read_adapter_folder(tmp_path / "out").state.items() if "lora_A" in n
    ]
    told = f"- ranks here, by module: {min(ranks)} to {max(ranks)}\n"
    assert (told in card) == (name != "flexlora")
    found = logits_with(folder, tmp_path / "out")
    assert torch.allclose(found, computed[SILO], atol=1e-5)
    assert not torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(folder)))
    said = flower_split("export", output, "--merge", folder, "--out", tmp_path / "merged")
    assert said.exit_code == 0, said.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged), computed[SILO], atol=1e-5)


PERSONAL = {"strategy.personal": "layers.1, layers.3"}
"""A layer of the trunk's and one of the silo's."""


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy.name": "flora", **PERSONAL},
        {"strategy.name": "fedavg", **PERSONAL},
        {"strategy.name": "fedsalora"},
    ],
    ids=["flora", "fedavg", "fedsalora"],
)
def test_a_silos_variant_has_the_trunks_part_and_its_own(
    folder, ran, state_home, tmp_path, monkeypatch, changes
):
    output, computed = ran(**changes)
    assert not torch.allclose(computed[0], computed[SILO], atol=1e-4)
    both = tmp_path / "both"
    said = flower_split("export", output, "--silo", SILO, "--out", both)
    assert said.exit_code == 0, said.output
    told = f"personal tensors of silo {SILO} after round {ROUNDS}, held by the trunk and the silo,"
    assert f"{told} is in" in said.output
    assert torch.allclose(logits_with(folder, both), computed[SILO], atol=1e-5)

    # As it is where server and silo are two machines: one after the other.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "server"))
    half, whole = tmp_path / "half", tmp_path / "whole"
    said = flower_split("export", output, "--silo", SILO, "--out", half)
    assert said.exit_code == 0, said.output
    assert "held by the trunk," in said.output
    assert not torch.allclose(logits_with(folder, half), computed[SILO], atol=1e-4)
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home))
    said = flower_split("export", half, "--silo", SILO, "--out", whole)
    assert said.exit_code == 0, said.output
    assert torch.allclose(logits_with(folder, whole), computed[SILO], atol=1e-5)
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert card.count(f"## Personal variant of silo {SILO}") == 2
    assert "- strategy: " in card


def test_a_damaged_half_is_not_left_out_in_silence(ran, state_home, tmp_path):
    output, _ = ran(**{"strategy.name": "fedsalora"})
    for file in state_home.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    told = flower_split("export", output, "--silo", SILO, "--out", tmp_path / "out")
    assert told.exit_code == 1
    assert f"holds no sound personal tensors of a round up to {ROUNDS}" in told.output
    assert not (tmp_path / "out").exists()
