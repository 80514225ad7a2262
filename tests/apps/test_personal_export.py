"""A silo's own variant, exported at the silo: it computes what the silo's own model did."""

import shutil
import stat

import pytest
import torch
from exporting import flower_split, logits_with
from in_process_grid import RUN_ID
from tiny_checkpoint import save_tiny_model
from transformers import AutoModelForCausalLM
from uncut_model import initial_arrays, logits, peft_model
from uncut_run import run_uncut, uncut_app

from flower_split.adapters import save_whole
from flower_split.client import AdapterExchange
from flower_split.config.sections import LoraSettings
from flower_split.strategies import FedAvgLoRA, FedExLoRA, FedSALoRA, FLoRA, PersonalParts

LORA = LoraSettings(r=4, alpha=8.0)
ROUNDS, SILO = 2, 1
STRATEGIES = {
    "fedavglora": lambda: PersonalParts(FedAvgLoRA(lora=LORA), ["layers.2"], lora=LORA),
    "fedexlora": lambda: PersonalParts(FedExLoRA(lora=LORA), ["layers.2", "layers.0"], lora=LORA),
    "flora": lambda: PersonalParts(FLoRA(lora=LORA), ["layers.2"], lora=LORA),
    "fedsalora": lambda: FedSALoRA(lora=LORA),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def ran(folder, state_home, tmp_path):
    """Runs a strategy: the folder of the global adapter, and what the silos' models computed."""

    def run(name):
        seen = {}
        app = uncut_app(folder, AdapterExchange, seen=seen)
        result, _ = run_uncut(STRATEGIES[name](), app, initial_arrays(folder), rounds=ROUNDS)
        adapter = save_whole(
            result.arrays.to_torch_state_dict(),
            tmp_path / "adapter",
            scale=LORA.alpha / LORA.r,
            base_model=str(folder),
        )
        return adapter, seen

    return run


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("name", STRATEGIES)
def test_it_computes_what_the_silos_model_did_in_its_last_evaluation(folder, ran, tmp_path, name):
    adapter, seen = ran(name)
    out = tmp_path / "mine"
    said = flower_split("export", adapter, "--silo", SILO, "--out", out)
    assert said.exit_code == 0, said.output
    told = f"with the personal tensors of silo {SILO} after round {ROUNDS}, held by the silo,"
    assert f"{told} is in {out}" in said.output
    wanted = seen["evaluate", ROUNDS, SILO]
    assert torch.allclose(logits_with(folder, out), wanted, atol=1e-5)
    assert not torch.allclose(seen["evaluate", ROUNDS, 0], wanted, atol=1e-4)
    assert not torch.allclose(logits_with(folder, adapter), wanted, atol=1e-4)


def test_it_is_the_silos_alone_and_says_so(ran, tmp_path):
    adapter, _ = ran("flora")
    out = tmp_path / "mine"
    flower_split("export", adapter, "--silo", SILO, "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"## Personal variant of silo {SILO}" in card
    assert "- base_model.model.model.layers.2.mlp.down_proj\n" in card
    assert "layers.1." not in card
    again = tmp_path / "again"
    assert flower_split("export", out, "--out", again).exit_code == 0
    assert stat.S_IMODE(again.stat().st_mode) == 0o700
    assert (again / "README.md").read_text(encoding="utf-8") == card


@pytest.mark.exhaustive
def test_it_can_be_merged(folder, ran, tmp_path):
    adapter, seen = ran("flora")
    out = tmp_path / "merged"
    said = flower_split("export", adapter, "--silo", SILO, "--merge", folder, "--out", out)
    assert said.exit_code == 0, said.output
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(logits(merged), seen["evaluate", ROUNDS, SILO], atol=1e-5)


def test_what_is_not_there_is_said_and_nothing_is_written(ran, state_home, tmp_path):
    adapter, _ = ran("fedsalora")
    out = tmp_path / "mine"
    told = flower_split("export", adapter, "--silo", "nobody", "--out", out)
    assert told.exit_code == 1
    assert "no personal tensors of silo 'nobody'" in told.output
    assert "on the silo's own machine" in told.output
    told = flower_split("export", adapter, "--best", "--silo", SILO, "--out", out)
    assert told.exit_code == 1 and "is one adapter" in told.output
    (run,) = (state_home / "flower-split" / "adapter").iterdir()
    shutil.copytree(run, run.with_name("another-run"))
    told = flower_split("export", adapter, "--silo", SILO, "--out", out)
    assert told.exit_code == 1
    assert f"2 runs: choose by --run {run.name}, another-run" in told.output.replace("\n", " ")
    for file in (run.with_name("another-run")).rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    told = flower_split("export", adapter, "--silo", SILO, "--run", "another-run", "--out", out)
    assert told.exit_code == 1 and "no sound personal tensors" in told.output
    assert not out.exists()
    given = ["--run", RUN_ID, "--state-dir", state_home / "flower-split"]
    told = flower_split("export", adapter, "--silo", SILO, *given, "--out", out)
    assert told.exit_code == 0, told.output


def test_what_is_no_lora_adapter_is_named(folder, tmp_path):
    peft_model(folder).save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    text = config.read_text()
    for changed, said in [
        (text.replace('"LORA"', '"IA3"'), "holds a IA3, expected a LORA"),
        (text[:-9], "no adapter that can be read"),
        ("[1]", "no adapter that can be read"),
        (text.replace('"r": 4', '"r": 0'), "no adapter that can be read"),
    ]:
        config.write_text(changed)
        told = flower_split("export", tmp_path / "adapter", "--out", tmp_path / "out")
        assert told.exit_code == 1 and said in told.output, told.output
    config.write_text(text)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    told = flower_split("export", tmp_path / "adapter", "--out", tmp_path / "out")
    assert told.exit_code == 1 and "is no PEFT folder" in told.output
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_rank_is_refused(folder, ran, tmp_path):
    ran("fedsalora")
    peft_model(folder, r=2, alpha=4).save_pretrained(tmp_path / "other")
    told = flower_split("export", tmp_path / "other", "--silo", SILO, "--out", tmp_path / "mine")
    assert told.exit_code == 1
    assert "does not fit this adapter" in told.output
    assert not (tmp_path / "mine").exists()
