"""Checkpoints: only what is wanted is read, and what is broken is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASE_BY_NAME
from transformers import AutoModelForCausalLM, PreTrainedModel

from flower_split.errors import WeightsError
from flower_split.segments import join, load_client_model, load_trunk, resolve_source
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


def shifted(case: str, by: float = 1.0) -> PreTrainedModel:
    """Another model of the same architecture."""
    model = CASE_BY_NAME[case].model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    return model


def joined(folder: Path) -> PreTrainedModel:
    """The model in `folder`, loaded by both parties and joined."""
    client = load_client_model(folder, **CUTS)
    join(client, load_trunk(folder, **CUTS))
    return client


IDS = torch.arange(5, 25).reshape(2, 10)


def assert_loads_like_transformers(folder: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(joined(folder)(IDS).logits, stock(IDS).logits)


@pytest.mark.parametrize("case", ["llama", "llama-tied", "mixtral", "gpt2"])
def test_index_left_behind_by_earlier_shards(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CASE_BY_NAME[case].model().save_pretrained(tmp_path, max_shard_size="20KB")
    shifted(case).save_pretrained(tmp_path)
    assert (tmp_path / INDEX_FILE).is_file()
    assert_loads_like_transformers(tmp_path)
    told = [record for record in caplog.records if "taken from model.safetensors" in record.message]
    assert len(told) == 1


def test_old_shards_and_index_beside_a_newer_file(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path / "old", max_shard_size="20KB")
    shifted("llama").save_pretrained(tmp_path)
    for file in (tmp_path / "old").glob("*.safetensors*"):
        shutil.copy(file, tmp_path)
    assert_loads_like_transformers(tmp_path)


@pytest.mark.parametrize("left_out", ["", "lm_head.weight", "model.embed_tokens.weight"])
def test_weights_that_the_configuration_ties_and_the_folder_does_not(
    left_out: str, tmp_path: Path
) -> None:
    model = CASE_BY_NAME["llama"].model()
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors.pop(left_out, None)
    save_file(tensors, tmp_path / SINGLE_FILE, {"format": "pt"})
    change_config(tmp_path, tie_word_embeddings=True)
    assert_loads_like_transformers(tmp_path)


def test_old_single_file_beside_newer_shards(tmp_path: Path) -> None:
    shifted("llama").save_pretrained(tmp_path / "new", max_shard_size="20KB")
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    for file in (tmp_path / "new").glob("*.safetensors*"):
        shutil.copy(file, tmp_path)
    assert_loads_like_transformers(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    for shard in sorted(set(index.values())):
        tensors = load_file(tmp_path / shard)
        tensors[name] = load_file(tmp_path / index[name])[name] + len(shard) + int(shard[6:11])
        save_file(tensors, tmp_path / shard, {"format": "pt"})
    assert_loads_like_transformers(tmp_path)
    assert "shards hold 1 tensors" in caplog.text


def test_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    index[name] = next(shard for shard in index.values() if shard != index[name])
    (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_loads_like_transformers(tmp_path)


def test_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    del index["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_loads_like_transformers(tmp_path)


@pytest.mark.parametrize("named", ["mine.safetensors", "inner/mine.safetensors"])
def test_file_that_the_configuration_names(tmp_path: Path, named: str) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    shifted("llama").save_pretrained(tmp_path / "other")
    (tmp_path / named).parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "other" / SINGLE_FILE, tmp_path / named)
    change_config(tmp_path, transformers_weights=named)
    assert_loads_like_transformers(tmp_path)
    (tmp_path / named).unlink()
    with pytest.raises(WeightsError, match="transformers_weights, which is not there"):
        load_trunk(tmp_path, **CUTS)


@pytest.mark.parametrize("named", ["../x.safetensors", "/x.safetensors", "x.bin", "..", 3])
def test_configuration_that_names_weights_elsewhere(tmp_path: Path, named: object) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path)
    change_config(tmp_path, transformers_weights=named)
    with pytest.raises(WeightsError, match="as transformers_weights; expected a file of the"):
        load_trunk(tmp_path, **CUTS)


def test_variant_and_distributed_weights_are_told(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(WeightsError, match=r"found model\.fp16\.safetensors.*variant="):
        load_trunk(tmp_path, **CUTS)
    shutil.copy(tmp_path / "model.fp16.safetensors", tmp_path / SINGLE_FILE)
    shutil.copy(tmp_path / SINGLE_FILE, tmp_path / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(WeightsError, match="holds a distributed checkpoint"):
        load_trunk(tmp_path, **CUTS)


def test_file_of_no_use_that_is_broken_does_no_harm(tmp_path: Path) -> None:
    CASE_BY_NAME["llama"].model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    trunks = {shard for name, shard in index.items() if ".layers.1." in name or ".2." in name}
    for shard in set(index.values()) - trunks:
        (tmp_path / shard).write_text("version https://git-lfs.github.com/spec/v1", "utf-8")
    load_trunk(tmp_path, **CUTS)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")
