"""`flower-split export`: what it writes loads into stock transformers and PEFT."""

import json
import shutil

import pytest
import torch
from exporting import flower_split
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from peft import PeftModel
from small_disk import fill, small_disk
from tiny_checkpoint import tiny_run_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from flower_split.adapters import load_state, resolve_lora, split_state, wrap
from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.checkpoint import find_checkpoint
from flower_split.config.sections import LoraSettings
from flower_split.remote import attach_trunk, session_spec
from flower_split.segments import layers_path, split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.strategies.checkpoints.run_state import read_adapter


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """The output folder of a run that kept three rounds."""
    output = tmp_path_factory.mktemp("finished")
    kept = {"checkpoint.keep": 3, "checkpoint.keep-best": True}
    values = tiny_run_config(tiny, **{"output-dir": str(output), **kept})
    grid = InProcessGrid(client_app, 3, run_config=values)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    return output


def base(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny / "model")


IDS = torch.arange(4, 14)[None]


def split_logits(tiny, state):
    """Logits of the model cut in two, with its adapter."""
    model = base(tiny)
    plan = resolve_lora(model, LoraSettings(r=2))
    path = layers_path(model)
    client, trunk = split_model(model, 1, 1)
    silo_part, trunk_part = split_state(state, path, trunk.cuts)
    engine = TrunkEngine(trunk, plan=plan)
    engine.load_shared_state(trunk_part)
    wrapped = wrap(client, plan)
    load_state(wrapped, silo_part)
    wrapped.eval()
    spec = session_spec(wrapped, plan=plan, trunk_adapters="federated", purpose="evaluate")
    with torch.no_grad():
        attach_trunk(wrapped, LocalTransport(engine, spec))
        return wrapped(IDS).logits


def assert_private(folder):
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.rglob("*")))


def test_the_adapter_computes_what_the_split_model_does(finished, tiny, tmp_path):
    out = tmp_path / "adapter"
    said = flower_split("export", finished, "--out", out)
    assert said.exit_code == 0, said.output
    assert "the adapter of round 2 is in" in said.output
    assert_private(out)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base(tiny), out).eval()(IDS).logits
    state = read_adapter(find_checkpoint(finished / "checkpoints"))
    assert torch.equal(loaded, split_logits(tiny, state))
    assert not torch.equal(loaded, base(tiny)(IDS).logits)
    wanted = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (out / "adapter_model.safetensors").read_bytes() == wanted


def test_the_prompt_format_goes_along(finished, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert flower_split("export", finished, "--out", first).exit_code == 0
    said = flower_split("export", first, "--out", second, "--json")
    assert json.loads(said.stdout)["folder"] == str(second)
    name = "prompt_format.json"
    kept = (finished / "adapter" / name).read_bytes()
    assert (first / name).read_bytes() == (second / name).read_bytes() == kept


def test_merged_it_is_a_stock_model(finished, tiny, tmp_path):
    out = tmp_path / "merged"
    said = flower_split("export", finished, "--out", out, "--merge", tiny / "model")
    assert said.exit_code == 0, said.output
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out).eval()(IDS).logits
    state = read_adapter(find_checkpoint(finished / "checkpoints"))
    assert torch.allclose(merged, split_logits(tiny, state), atol=1e-5)
    assert AutoTokenizer.from_pretrained(out)("the sum")["input_ids"]
    assert_private(out)
    assert not (out / "adapter_config.json").exists()


@pytest.mark.parametrize("server_round", [1, 2])
def test_a_round_is_chosen_by_number_or_by_its_folder(finished, tmp_path, server_round):
    by_number, by_folder = tmp_path / "number", tmp_path / "folder"
    source = finished / "checkpoints"
    assert not flower_split("export", source, "--round", server_round, "--out", by_number).exit_code
    folder = source / f"round-0000{server_round}"
    assert not flower_split("export", folder, "--out", by_folder).exit_code
    one, other = ((f / "adapter_model.safetensors").read_bytes() for f in (by_number, by_folder))
    assert one == other
    last = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (one == last) == (server_round == 2)


def test_the_best_round_is_chosen(finished, tmp_path):
    said = flower_split("export", finished, "--best", "--out", tmp_path / "best")
    best = find_checkpoint(finished / "checkpoints").best_round
    assert f"of round {best} is in" in said.output


def test_the_model_card_says_where_it_comes_from_and_no_more(finished, tiny, tmp_path):
    flower_split("export", finished, "--out", tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    for said in (
        'base_model: "model"',
        "library_name: peft",
        "- layers with the silos: 1 bottom, 1 top",
        "- strategy: fedavg",
        "- rounds: 2",
        "- silos in the last round: 3",
        "- eval-loss: ",
        "- LoRA: r = 2, alpha = 16",
        "- peft: ",
    ):
        assert said in card
    assert str(tiny) not in card
    assert (finished / "adapter" / "README.md").read_text(encoding="utf-8") == card
    lines = (tiny / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert not any(json.loads(line)["text"] in card for line in lines)


def test_nothing_is_overwritten_unless_that_is_wanted(finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    said = flower_split("export", finished, "--out", out)
    assert said.exit_code == 1
    assert "exists already" in said.output
    assert (out / "mine").read_text() == "x"
    assert flower_split("export", finished, "--out", out, "--force").exit_code == 0
    assert not (out / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round", "7"], "no checkpoint of round 7; it has: 0, 1, 2"),
        (["--merge", "/nowhere/at/all"], "/nowhere/at/all cannot be loaded"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(finished, tmp_path, arguments, said):
    told = flower_split("export", finished, "--out", tmp_path / "out", *arguments)
    assert told.exit_code == 1
    assert said in told.output
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(finished, tiny, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        for more in ([], ["--merge", tiny / "model"]):
            told = flower_split("export", finished, "--out", disk / "out", *more)
            assert told.exit_code == 1, told.output
            assert "out cannot be written: " in told.output
            assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_folder_without_checkpoints_and_a_damaged_one_are_told_apart(finished, tmp_path):
    told = flower_split("export", tmp_path, "--out", tmp_path / "out")
    assert told.exit_code == 1
    assert "has no checkpoints" in told.output
    copy = tmp_path / "round-00002"
    shutil.copytree(finished / "checkpoints" / "round-00002", copy)
    (copy / "arrays.safetensors").write_bytes(b"")
    told = flower_split("export", copy, "--out", tmp_path / "out")
    assert told.exit_code == 1
    assert "arrays.safetensors is damaged" in told.output
