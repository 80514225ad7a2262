"""State files come back as they were, or not at all."""

import errno
import json
import os

import pytest
import torch
from earlier_state import write_exchange, write_file, write_session
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.client.state.state_file import StateFile, round_tag
from flower_split.errors import StateError
from flower_split.lowrank import Scaling

TAG = "0123456789abcdef" * 4
SCALING = Scaling(r=4, alpha=8.0)


def state(value=1.0):
    shared = torch.full((4, 2), value)
    return SessionState(
        moments={"a": shared.T, "b": shared, "c": torch.arange(3)},
        personal=PersonalTensors(tensors={"a": shared, "d": torch.zeros(0)}, scale=2.0),
        scaling=SCALING,
    )


def file_in(folder):
    return StateFile.at(folder, 3, TAG)


def same(found, wanted):
    pairs = (found.moments, wanted.moments), (found.personal.tensors, wanted.personal.tensors)
    return (found.scaling, found.personal.scale) == (wanted.scaling, wanted.personal.scale) and all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) for n, t in theirs.items())
        for ours, theirs in pairs
    )


def test_a_state_comes_back(tmp_path):
    file_in(tmp_path).write(state())
    (found,) = StateFile.all_in(tmp_path)
    assert found == file_in(tmp_path)
    assert same(found.read(), state())
    assert [path.name for path in tmp_path.iterdir()] == [f"00000003-{TAG}.safetensors"]
    assert found.path.stat().st_mode & 0o077 == 0


@settings(max_examples=60)
@given(st.data())
def test_damage_anywhere_is_found_or_changes_nothing(tmp_path_factory, data):
    file = file_in(tmp_path_factory.mktemp("state"))
    file.write(state())
    content = bytearray(file.path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.path.write_bytes(content)
    try:
        found = file.read()
    except StateError:
        return
    # A bit of the header's white space says nothing.
    assert same(found, state())


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    file = file_in(tmp_path)
    file.write(state())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(state(2.0))
    assert same(file.read(), state())
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_file_may_be_no_link_and_not_too_large(tmp_path):
    file = file_in(tmp_path)
    file.write(state())
    link = StateFile.at(tmp_path, 4, TAG)
    link.path.symlink_to(file.path)
    with pytest.raises(StateError, match="symbolic link"):
        link.read()
    with pytest.raises(StateError, match="at most 10"):
        file.read(most_bytes=10)


def test_other_files_are_none_of_ours(tmp_path):
    for name in ("thesis.txt", "incoming.tmp", f"3-{TAG}.safetensors", "round-3.safetensors"):
        (tmp_path / name).touch()
    assert StateFile.all_in(tmp_path) == []
    assert StateFile.all_in(tmp_path / "nothing") == []


MOMENTS = {"a/exp_avg": torch.tensor([1.0, 2.0]), "a/step": torch.tensor(3.0)}
OWN = torch.tensor([4.0, 5.0])


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    write_session(tmp_path, 3, TAG, {**MOMENTS, "kept:b": OWN})
    (file,) = StateFile.all_in(tmp_path)
    assert (file.server_round, file.tag) == (3, TAG)
    personal = PersonalTensors(tensors={"b": OWN}, scale=2.0)
    assert same(file.read(), SessionState(moments=MOMENTS, personal=personal, scaling=SCALING))


def test_a_file_is_what_an_earlier_version_reads(tmp_path):
    """Byte for byte, but for the order of the header's entries."""
    personal = PersonalTensors(tensors={"b": OWN}, scale=2.0)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    state = SessionState(moments=MOMENTS, personal=personal, scaling=SCALING)
    StateFile.at(ours, 3, TAG).write(state)
    write_session(theirs, 3, TAG, {**MOMENTS, "kept:b": OWN})
    contents = [next(folder.iterdir()).read_bytes() for folder in (ours, theirs)]
    ends = [8 + int.from_bytes(content[:8], "little") for content in contents]
    headers = [json.loads(content[8:end]) for content, end in zip(contents, ends, strict=True)]
    assert headers[0] == headers[1]
    assert contents[0][ends[0] :] == contents[1][ends[1] :]


def test_a_file_of_an_earlier_adapter_exchange_is_read(tmp_path):
    write_exchange(tmp_path, 3, {"b": OWN})
    (file,) = StateFile.all_in(tmp_path)
    assert (file.server_round, file.tag) == (3, round_tag(3))
    personal = PersonalTensors(tensors={"b": OWN}, scale=2.0)
    assert same(file.read(), SessionState(personal=personal))


@pytest.mark.parametrize("facts", [{}, {"format": "flower-split-kept-1"}, {"format": "other"}])
def test_a_file_of_an_earlier_adapter_exchange_says_what_it_is(tmp_path, facts):
    write_file(tmp_path / "round-00000003.safetensors", facts, {"b": OWN})
    (file,) = StateFile.all_in(tmp_path)
    with pytest.raises(StateError, match=r"another version|how its tensors are scaled"):
        file.read()
