"""Checkpoints: only what is wanted is read, and what is broken is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASE_BY_NAME

from flower_split.errors import WeightsError
from flower_split.segments import load_client_model, load_trunk, resolve_source
from flower_split.segments.loading.weight_files import INDEX_FILE, SINGLE_FILE, WeightFiles

CUTS = {"bottom_layers": 1, "top_layers": 1}
SHARDS = {
    "first.safetensors": {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)},
    "second.safetensors": {"b.weight": torch.full((4,), 7.0)},
}


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")


@pytest.fixture
def single(tmp_path: Path) -> Path:
    tensors = {name: tensor for part in SHARDS.values() for name, tensor in part.items()}
    save_file(tensors, tmp_path / SINGLE_FILE)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for shard, tensors in SHARDS.items():
        save_file(tensors, tmp_path / shard)
    write_index(tmp_path, {name: shard for shard, part in SHARDS.items() for name in part})
    return tmp_path


def read(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    checkpoint = WeightFiles(resolve_source(folder))
    with checkpoint.open(lambda name: name in names) as tensors:
        return {name: tensor[...] for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_what_is_wanted_is_read(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    tensors = read(folder, "a.weight", "b.weight", "c.weight")
    assert tensors.keys() == {"a.weight", "b.weight"}
    assert torch.equal(tensors["a.weight"], SHARDS["first.safetensors"]["a.weight"])
    assert torch.equal(tensors["b.weight"], SHARDS["second.safetensors"]["b.weight"])


def test_shard_that_is_not_needed_is_not_opened(sharded: Path) -> None:
    (sharded / "second.safetensors").unlink()
    assert read(sharded, "a.bias").keys() == {"a.bias"}


def test_shard_that_is_not_there(sharded: Path) -> None:
    (sharded / "second.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"'second\.safetensors', which is not there"):
        read(sharded, "b.weight")


def test_shard_without_its_tensor(sharded: Path) -> None:
    save_file({"other": torch.ones(1)}, sharded / "second.safetensors")
    with pytest.raises(WeightsError, match=r"second\.safetensors lacks the tensor 'b\.weight'"):
        read(sharded, "b.weight")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
     "x.bin", "..", "", 3, None, ["x.safetensors"]],
)  # fmt: skip
def test_index_that_leads_elsewhere(sharded: Path, shard: object) -> None:
    (sharded.parent / "x.safetensors").write_bytes(b"secret")
    write_index(sharded, {"b.weight": shard})
    with pytest.raises(WeightsError, match=r"expected the plain name of a \.safetensors file"):
        read(sharded, "b.weight")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has no weight_map"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
    ],
)
def test_broken_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        WeightFiles(resolve_source(tmp_path))


def test_index_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="cannot be read"):
        WeightFiles(resolve_source(tmp_path))


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_truncated_file(single: Path, kept: int) -> None:
    file = single / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a readable safetensors"):
        read(single, "a.bias")


def test_git_lfs_pointer(single: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (single / SINGLE_FILE).write_text(pointer, encoding="utf-8")
    with pytest.raises(WeightsError, match="Git LFS"):
        read(single, "a.bias")


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no weights that can be read: expected model"):
        WeightFiles(resolve_source(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickle_is_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(WeightsError, match=rf"found {name}\. Pickles .* save_pretrained"):
        WeightFiles(resolve_source(tmp_path))


def test_pickle_beside_safetensors_does_no_harm(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert read(single, "a.bias").keys() == {"a.bias"}


@pytest.mark.parametrize("load", [load_client_model, load_trunk])
def test_the_loaders_report_it(load: Any, tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    file = tmp_path / SINGLE_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        load(tmp_path, **CUTS)
    file.unlink()
    with pytest.raises(WeightsError, match="has no weights"):
        load(tmp_path, **CUTS)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load(tmp_path, **CUTS)
    shutil.rmtree(tmp_path)
    with pytest.raises(WeightsError, match="there is no folder"):
        load(str(tmp_path), **CUTS)


def test_shards_of_another_model(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    shard = tmp_path / index[name]
    save_file({n: t for n, t in load_file(shard).items() if n != name}, shard, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"{shard.name} lacks the tensor '{name}'"):
        load_trunk(tmp_path, **CUTS)
