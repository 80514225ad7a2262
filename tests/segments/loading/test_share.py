"""A silo's share of a checkpoint is what its model is loaded from, and never more."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASE_BY_NAME, CASES, Case

from flower_split.errors import CutError, WeightsError
from flower_split.segments import load_client_model, silo_share
from flower_split.segments.loading.extents import Extent, file_header, tensor_extents
from flower_split.segments.loading.weight_files import WeightFiles

CUTS = [(1, 1), (0, 0)]


def extents_of(folder: Path, bottom: int, top: int) -> dict[str, Extent]:
    share = silo_share(folder, bottom_layers=bottom, top_layers=top)
    return {extent.name: extent for group in share.layers.values() for extent in group}


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_what_the_client_model_is_loaded_from(
    case: Case, cuts: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.model().save_pretrained(tmp_path)
    read: set[str] = set()
    open_files = WeightFiles.open

    @contextmanager
    def noting(self: WeightFiles, wanted: Any) -> Iterator[dict[str, Any]]:
        with open_files(self, wanted) as tensors:
            read.update(tensors)
            yield tensors

    monkeypatch.setattr(WeightFiles, "open", noting)
    load_client_model(tmp_path, bottom_layers=cuts[0], top_layers=cuts[1])
    monkeypatch.undo()
    assert extents_of(tmp_path, *cuts).keys() == read


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one file", "shards"])
def test_extents_are_where_the_bytes_lie(shard: str, tmp_path: Path) -> None:
    model = CASE_BY_NAME["qwen3_moe"].model().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    stored = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    extents = extents_of(tmp_path, 1, 1)
    assert len({extent.path for extent in extents.values()}) > (shard == "20KB")
    for name, extent in extents.items():
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            found = file.read(extent.size)
        assert found == stored[name].view(torch.uint8).numpy().tobytes()
        assert (extent.dtype, extent.shape) == ("BF16", tuple(stored[name].shape))


def test_a_header_and_its_bytes_are_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    extents = list(tensor_extents(tmp_path / "x.safetensors").values())
    whole = (tmp_path / "x.safetensors").read_bytes()
    body = b"".join(whole[e.offset : e.offset + e.size] for e in extents)
    (tmp_path / "y.safetensors").write_bytes(file_header(extents) + body)
    again = load_file(tmp_path / "y.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "stranger",
    [
        "ema.blocks.2.weight",  # a copy of the trunk's, under a name that the cuts do not catch
        "mtp.layers.0.weight",  # a layer of another stack with the number of a bottom layer
        "optimizer.state",
        "model.layers.9.weight",  # beyond the model's layers
    ],
)
def test_tensors_that_are_no_part_of_the_model_stay_out(
    stranger: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    before = extents_of(tmp_path, 1, 1).keys()
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), stranger: torch.ones(3)}, file, {"format": "pt"})
    load_client_model(tmp_path, bottom_layers=1, top_layers=1)
    with caplog.at_level(logging.WARNING):
        assert extents_of(tmp_path, 1, 1).keys() == before
    assert (stranger in caplog.text) == ("layers.9" not in stranger)


def test_a_checkpoint_of_the_base_model_is_understood(tmp_path: Path) -> None:
    CASE_BY_NAME["gpt2"].model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    save_file({n.removeprefix("transformer."): t for n, t in stored.items()}, file)
    names = extents_of(tmp_path, 1, 1).keys()
    assert {"wte.weight", "wpe.weight", "ln_f.weight"} <= names
    assert {name.split(".")[1] for name in names if name.startswith("h.")} == {"0", "3"}


def test_cuts_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CutError):
        silo_share(tmp_path, bottom_layers=3, top_layers=1)
    with pytest.raises(WeightsError):
        silo_share(tmp_path, bottom_layers=1, top_layers=1)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"a":{}}', b'{"a":{"dtype":"F32","shape":1,"data_offsets":[0]}}']
)
def test_a_broken_header_is_named(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        tensor_extents(path)


def test_of_shards_that_hold_the_same_name_the_last_one_counts(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.embed_tokens.weight"
    for shard in set(index.values()):
        stored = load_file(tmp_path / shard)
        other = load_file(tmp_path / index[name])[name] + 1
        save_file({name: other, **stored}, tmp_path / shard, {"format": "pt"})
    assert extents_of(tmp_path, 1, 1)[name].path.name == max(index.values())
