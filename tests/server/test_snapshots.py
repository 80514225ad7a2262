"""Snapshots are found by the silo that had them made, and by no other."""

from pathlib import Path

import pytest
import torch

from flower_split.errors import SequenceError, StateError, WireError
from flower_split.server.snapshots import SnapshotStore

TAGS = [f"{number:064x}" for number in range(6)]


@pytest.fixture(params=["memory", "folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "snapshots" if request.param == "folder" else None


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(2, 3, generator=generator), "b": torch.randn(4, generator=generator)}


def test_what_was_put_comes_back(folder: Path | None) -> None:
    store = SnapshotStore(folder)
    store.put("clinic", TAGS[0], tensors(0))
    store.put("clinic", TAGS[1], {})
    assert all(torch.equal(t, tensors(0)[n]) for n, t in store.get("clinic", TAGS[0]).items())
    assert store.get("clinic", TAGS[1]) == {}


def test_it_is_the_silos_own(folder: Path | None) -> None:
    store = SnapshotStore(folder)
    store.put("clinic", TAGS[0], tensors(0))
    for silo in ("bank", "", "../clinic"):
        with pytest.raises(SequenceError, match="has no snapshot"):
            store.get(silo, TAGS[0])


def test_the_oldest_of_a_silo_goes(folder: Path | None) -> None:
    store = SnapshotStore(folder, most=2)
    store.put("bank", TAGS[0], tensors(0))
    for number, tag in enumerate(TAGS[:4]):
        store.put("clinic", tag, tensors(number))
    for tag in TAGS[:2]:
        with pytest.raises(SequenceError, match="the last 2 of a silo"):
            store.get("clinic", tag)
    assert store.get("clinic", TAGS[3]).keys() == {"a", "b"}
    assert store.get("bank", TAGS[0]).keys() == {"a", "b"}


def test_the_silo_that_has_most_makes_room_for_the_others() -> None:
    size = sum(t.nbytes for t in tensors(0).values())
    store = SnapshotStore(most_bytes=4 * size)
    store.put("bank", TAGS[0], tensors(0))
    for tag in TAGS:
        store.put("clinic", tag, tensors(1))
    assert store.get("bank", TAGS[0]).keys() == {"a", "b"}
    for tag in TAGS[:3]:
        with pytest.raises(SequenceError, match="has no snapshot"):
            store.get("clinic", tag)
    for tag in TAGS[3:]:
        assert store.get("clinic", tag).keys() == {"a", "b"}
    with pytest.raises(SequenceError, match=f"{5 * size} bytes.* may have {4 * size}"):
        store.put("bank", TAGS[1], {str(n): t for n in range(5) for t in [torch.zeros(size // 4)]})
    assert store.get("bank", TAGS[0]).keys() == {"a", "b"}


def test_another_process_finds_those_of_a_folder(tmp_path: Path) -> None:
    SnapshotStore(tmp_path).put("clinic", TAGS[0], tensors(0))
    found = SnapshotStore(tmp_path).get("clinic", TAGS[0])
    assert torch.equal(found["a"], tensors(0)["a"])


@pytest.mark.parametrize("tag", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_malformed_tag_is_refused(folder: Path | None, tag: str) -> None:
    store = SnapshotStore(folder)
    with pytest.raises(WireError, match="64 hexadecimal digits"):
        store.put("clinic", tag, tensors(0))
    with pytest.raises(WireError, match="64 hexadecimal digits"):
        store.get("clinic", tag)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(StateError, match=r"cannot be written to .*file: Not a directory"):
        SnapshotStore(place)


def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    store.put("clinic", TAGS[0], tensors(0))
    (own,) = (tmp_path / "snapshots").iterdir()
    own.chmod(0o777)
    with pytest.raises(SequenceError, match="nobody else may write"):
        store.put("clinic", TAGS[1], tensors(0))
    with pytest.raises(SequenceError, match="nobody else may write"):
        SnapshotStore(tmp_path / "snapshots").get("clinic", TAGS[0])
    (tmp_path / "snapshots").chmod(0o777)
    with pytest.raises(StateError, match="nobody else may write"):
        SnapshotStore(tmp_path / "snapshots")


def test_no_link_is_followed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    store.put("clinic", TAGS[0], tensors(0))
    (file,) = (tmp_path / "snapshots").rglob("*.safetensors")
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    before = elsewhere.read_bytes()
    file.symlink_to(elsewhere)
    file.with_name(f"{TAGS[0]}.part").symlink_to(elsewhere)
    with pytest.raises(SequenceError, match="symbolic link"):
        SnapshotStore(tmp_path / "snapshots").get("clinic", TAGS[0])
    store.put("clinic", TAGS[0], tensors(1))
    assert elsewhere.read_bytes() == before
    assert not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    SnapshotStore(tmp_path).put("clinic", TAGS[0], tensors(0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"not a tensor")
    with pytest.raises(SequenceError, match="cannot be read"):
        SnapshotStore(tmp_path).get("clinic", TAGS[0])


def test_many_names_of_silos_do_not_fill_the_memory() -> None:
    """Without tickets a silo has whatever name it gives itself."""
    store = SnapshotStore(most_silos=3)
    store.put("clinic", TAGS[0], tensors(0))
    for number in range(10):
        store.put(f"flood-{number}", TAGS[1], tensors(1))
        store.put("clinic", TAGS[2], tensors(2))  # who goes on is not forgotten
    assert store.get("clinic", TAGS[0]).keys() == {"a", "b"}
    with pytest.raises(SequenceError, match="the last 16 of a silo"):
        store.get("flood-0", TAGS[1])
