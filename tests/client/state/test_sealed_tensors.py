"""Sealed files come back as they were, or not at all."""

import errno
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.client.state.sealed_tensors import read_sealed, write_sealed
from flower_split.errors import StateError

FACTS = {"format": "test", "round": "3"}


def tensors(value=1.0):
    shared = torch.full((4, 2), value)
    return {"a": shared.T, "b": shared, "c": torch.arange(3)}


def test_facts_and_tensors_come_back(tmp_path):
    write_sealed(tmp_path / "file", FACTS, tensors())
    facts, found = read_sealed(tmp_path / "file")
    assert facts == FACTS
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0


@settings(max_examples=60)
@given(st.data())
def test_damage_anywhere_is_found_or_changes_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("sealed") / "file"
    write_sealed(path, FACTS, tensors())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        facts, found = read_sealed(path)
    except StateError:
        return
    # A bit of the header's white space says nothing.
    assert facts == FACTS and found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    write_sealed(tmp_path / "file", FACTS, tensors())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_sealed(tmp_path / "file", FACTS, tensors(2.0))
    assert torch.equal(read_sealed(tmp_path / "file")[1]["b"], tensors()["b"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_may_be_no_link_and_not_too_large(tmp_path):
    write_sealed(tmp_path / "file", FACTS, tensors())
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(StateError, match="no regular file"):
        read_sealed(tmp_path / "link")
    with pytest.raises(StateError, match="at most 10"):
        read_sealed(tmp_path / "file", most_bytes=10)
