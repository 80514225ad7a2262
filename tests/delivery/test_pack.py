"""A pack holds a silo's tensors to the bit, everything it needs beside them, and nothing else."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from delivering import unpacked
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_model
from tiny_models import CASE_BY_NAME, CASES, Case, attentions
from torch import Tensor
from transformers import AutoModelForCausalLM

from flower_split.delivery.manifest import SMALL_FILES
from flower_split.delivery.pack import Pack
from flower_split.errors import CutError, WeightsError
from flower_split.segments import join, load_client_model, load_tokenizer, load_trunk

ONE_OF_EACH = list({case.model_type: case for case in CASES}.values())


def pack_of(folder: Path, cuts: tuple[int, int] = (1, 1), **options: int) -> Pack:
    return Pack(folder, bottom_layers=cuts[0], top_layers=cuts[1], **options)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def content(pack: Pack) -> bytes:
    """Every byte that a pack gives to anyone who asks for all there is."""
    digests = [pack.digest, *pack.manifest.items]
    parts = [part for digest in digests if (part := pack.find(digest))]
    assert len(parts) == len(digests)
    return b"".join(part.read(0, part.size) for part in parts)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.sampled(keep=6)
@pytest.mark.parametrize("cuts", [(1, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_the_delivered_client_and_the_trunk_are_the_uncut_model(
    case: Case, cuts: tuple[int, int], tmp_path: Path
) -> None:
    attention = attentions(case)[-1]
    case.model().save_pretrained(tmp_path / "model")
    with pack_of(tmp_path / "model", cuts) as pack:
        folder = unpacked(pack, tmp_path / "cache")
        given = content(pack)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=attention)
    options = {"bottom_layers": cuts[0], "top_layers": cuts[1], "attention": attention}
    client = load_client_model(folder, **options)
    join(client, load_trunk(tmp_path / "model", **options))
    tokens = torch.arange(3, 21).reshape(2, 9)
    call = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    with torch.no_grad():
        ours, theirs = client(**call), whole(**call)
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.logits, theirs.logits)

    stored, delivered = tensors_in(tmp_path / "model"), tensors_in(folder)
    assert all(raw(tensor) == raw(stored[name]) for name, tensor in delivered.items())
    withheld = [tensor for name, tensor in stored.items() if name not in delivered]
    assert withheld and len(withheld) + len(delivered) == len(stored)
    for tensor in withheld:
        # Constants such as zero biases are found anywhere.
        assert raw(tensor) not in given or tensor.numel() < 8 or tensor.unique().numel() == 1


def test_bytes_are_the_checkpoints_own_in_its_own_dtype(tmp_path: Path) -> None:
    model = CASE_BY_NAME["qwen3_moe"].model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    with pack_of(tmp_path / "model") as pack:
        folder = unpacked(pack, tmp_path / "cache")
    stored = tensors_in(tmp_path / "model")
    for name, tensor in tensors_in(folder).items():
        assert tensor.dtype == torch.bfloat16
        assert raw(tensor) == raw(stored[name])


def test_the_tokenizer_comes_with_it(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    with pack_of(tmp_path / "model") as pack:
        folder = unpacked(pack, tmp_path / "cache")
    theirs = load_tokenizer(tmp_path / "model")
    ours = load_tokenizer(folder)
    assert ours("the sum of a list").input_ids == theirs("the sum of a list").input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_only_files_of_the_list_are_given_whatever_else_lies_there(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    secrets = ["credentials.json", "tokenizer.json.bak", "optimizer.safetensors", ".env", "x.txt"]
    for name in secrets:
        (tmp_path / name).write_text(f"secret of {name}")
    (tmp_path / "vocab.json").mkdir()
    with pack_of(tmp_path) as pack:
        assert set(pack.manifest.files) == {
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert pack.manifest.files.keys() <= SMALL_FILES
        assert b"secret of" not in content(pack)


def test_every_part_has_the_digest_and_size_of_its_bytes_at_any_offset(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pack_of(tmp_path, part_bytes=1500) as pack:
        for digest, item in pack.manifest.items.items():
            part = pack.find(digest)
            assert part is not None and part.size == item.size
            whole = part.read(0, item.size + 99)
            assert hashlib.sha256(whole).hexdigest() == digest
            for offset in {0, 1, 7, 8, item.size // 2, item.size - 1, item.size, item.size + 1}:
                for length in (1, 13, item.size):
                    assert part.read(offset, length) == whole[offset : offset + length]


def test_parts_are_bounded_aligned_and_of_one_layer(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    with pack_of(tmp_path / "model", part_bytes=1500) as pack:
        folder = unpacked(pack, tmp_path / "cache")
        assert len(pack.manifest.weights) > 6
    for path in folder.glob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        assert length % 8 == 0
        names = load_file(path).keys()
        assert len({name.split(".")[2] for name in names if ".layers." in name}) <= 1
        assert path.stat().st_size - length - 8 <= 1500 or len(names) == 1


def test_the_same_content_has_the_same_digest_and_other_cuts_share_parts(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pack_of(tmp_path) as one, pack_of(tmp_path) as same, pack_of(tmp_path, (2, 1)) as deeper:
        assert one.digest == same.digest != deeper.digest
        assert one.manifest.items.keys() < deeper.manifest.items.keys()


def test_a_file_put_in_the_place_of_the_checkpoints_changes_nothing(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pack_of(tmp_path) as pack:
        before = content(pack)
        new = tmp_path / "new"
        new.write_bytes(b"x")
        os.replace(new, tmp_path / "model.safetensors")
        assert content(pack) == before


def test_a_file_that_was_cut_off_is_said(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pack_of(tmp_path) as pack:
        os.truncate(tmp_path / "model.safetensors", 100)
        with pytest.raises(WeightsError, match="cut off"):
            content(pack)


def open_files(folder: Path) -> list[str]:
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if link.is_symlink()]
    return [target for target in targets if target.startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at /proc")
def test_files_are_closed_and_nothing_is_found_afterwards(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    files = set(os.listdir(tmp_path))
    with pack_of(tmp_path) as pack:
        digest = pack.digest
        assert open_files(tmp_path)
    assert open_files(tmp_path) == []
    assert pack.find(digest) is None
    pack.close()
    with pytest.raises(CutError):
        pack_of(tmp_path, (3, 1))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError):
        pack_of(tmp_path)
    assert open_files(tmp_path) == []
    assert set(os.listdir(tmp_path)) == files
