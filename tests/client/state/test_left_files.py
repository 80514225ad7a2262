import errno
import os
import stat

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from flower_split.client.state.left_files import FORMAT, LeftFiles
from flower_split.client.state.left_state import SessionState, SiloAdapter
from flower_split.errors import StateError
from flower_split.optimization.moments import AVERAGES

PARAMETERS = {"a": nn.Parameter(torch.zeros(2, 3)), "b": nn.Parameter(torch.zeros(4))}
TAGS = {number: f"{number:064x}" for number in range(10)}


def state(number):
    tensors = {
        f"{name}/{part}": torch.full(parameter.shape, float(number))
        for name, parameter in PARAMETERS.items()
        for part in AVERAGES
    }
    return tensors | {f"{name}/step": torch.tensor(float(number)) for name in PARAMETERS}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "silo"


def kept(folder):
    return LeftFiles(folder, SiloAdapter(parameters=PARAMETERS))


def save(folder, number, *, after="", server_round=None):
    kept(folder).save(
        TAGS[number],
        number if server_round is None else server_round,
        SessionState(moments=state(number)),
        after=TAGS[after] if after else "",
    )


def offered(folder):
    return [int(tag, 16) for tag in kept(folder).offers()]


def file_of(folder, number):
    (path,) = folder.glob(f"*-{TAGS[number]}.safetensors")
    return path


def test_what_was_saved_is_offered_and_loaded(folder):
    assert kept(folder).offers() == ()
    save(folder, 1)
    save(folder, 2, after=1)
    both = kept(folder)
    assert both.offers() == (TAGS[2], TAGS[1])
    for number in (1, 2):
        loaded = both.load(TAGS[number]).moments
        assert loaded.keys() == state(number).keys()
        assert all(torch.equal(loaded[name], t) for name, t in state(number).items())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_silo_without_tensors_of_its_own_keeps_that_it_took_part(folder):
    empty = LeftFiles(folder, SiloAdapter(parameters={}))
    empty.save(TAGS[1], 1, SessionState(), after="")
    again = LeftFiles(folder, SiloAdapter(parameters={}))
    assert again.offers() == (TAGS[1],)
    assert again.load(TAGS[1]).moments == {}


def test_three_states_are_kept_and_the_trunks_among_them(folder):
    for number in range(1, 6):
        save(folder, number, after=number - 1)
    assert offered(folder) == [5, 4, 3]


def test_rounds_that_never_counted_are_forgotten_and_the_last_that_did_is_not(folder):
    save(folder, 1)
    save(folder, 2, after=1)
    for uncounted in range(3, 9):
        save(folder, uncounted, after=2)
        assert offered(folder) == [uncounted, 2, 1]


def test_a_server_that_went_back_finds_its_state_and_the_silo_follows(folder):
    for number in range(1, 5):
        save(folder, number, after=number - 1)
    save(folder, 9, after=3, server_round=4)
    assert offered(folder) == [9, 3, 2]


def test_after_a_fresh_start_nothing_older_is_offered(folder):
    save(folder, 1)
    save(folder, 2, after=1)
    save(folder, 3)
    assert offered(folder) == [3]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_the_state_before_it_is_offered(folder, caplog, data):
    save(folder, 1)
    save(folder, 2, after=1)
    path = file_of(folder, 2)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    caplog.clear()
    assert offered(folder) == [1]
    assert path.name in caplog.text
    assert not path.exists()
    kept(folder).remove()


def write(folder, number, tensors=None, **facts):
    """A file as another program might leave it."""
    save(folder, number)
    path = file_of(folder, number)
    save_file(state(number) if tensors is None else tensors, path, metadata=facts)
    return path


def test_content_without_its_digest_is_not_used(folder):
    write(folder, 1, format=FORMAT, tag=TAGS[1], round="1")
    assert offered(folder) == []
    write(folder, 1, format=FORMAT, tag=TAGS[1], round="1", digest="0" * 64)
    assert offered(folder) == []


def test_a_state_under_another_ones_name_is_not_used(folder):
    save(folder, 1)
    path = file_of(folder, 1)
    path.rename(folder / path.name.replace(TAGS[1], TAGS[2]))
    assert offered(folder) == []


def test_a_state_of_another_model_is_not_used(folder, caplog):
    save(folder, 1)
    other = LeftFiles(folder, SiloAdapter(parameters={"a": nn.Parameter(torch.zeros(2, 3))}))
    assert other.offers() == ()
    assert "kept for another model" in caplog.text


def test_a_file_that_is_much_too_large_is_not_read(folder, caplog):
    path = write(folder, 1)
    with path.open("ab") as file:
        file.truncate(1 << 31)
    assert offered(folder) == []
    assert "2147483648 bytes" in caplog.text


def test_a_link_is_not_followed(folder, tmp_path):
    save(folder, 1)
    path = file_of(folder, 1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert offered(folder) == []
    assert (tmp_path / "elsewhere").exists()


def test_a_folder_that_others_can_write_into_is_not_used(folder, caplog):
    save(folder, 1)
    folder.chmod(0o777)
    assert offered(folder) == []
    assert "writable by nobody else" in caplog.text
    save(folder, 2)
    assert "fresh optimizer on both sides" in caplog.text


def test_a_killed_writers_leftover_is_never_offered_and_written_over(folder):
    save(folder, 1)
    (folder / "incoming.tmp").write_bytes(file_of(folder, 1).read_bytes()[:100])
    assert offered(folder) == [1]
    save(folder, 2, after=1)
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors"] * 2


def test_values_that_are_not_finite_are_not_kept(folder, caplog):
    broken = state(1) | {"a/exp_avg": torch.full((2, 3), torch.nan)}
    kept(folder).save(TAGS[1], 1, SessionState(moments=broken), after="")
    assert "not finite" in caplog.text
    assert offered(folder) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_what_was_there(folder, call, monkeypatch, caplog):
    save(folder, 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        save(folder, 2, after=1)
    assert "No space left on device" in caplog.text
    assert "fresh optimizer on both sides" in caplog.text
    assert offered(folder) == [1]
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    save(tmp_path / "file" / "silo", 1)
    assert "cannot be kept" in caplog.text


def test_a_state_that_vanished_is_an_error(folder):
    save(folder, 1)
    save(folder, 2, after=1)
    both = kept(folder)
    both.offers()
    file_of(folder, 1).unlink()
    with pytest.raises(StateError, match="is gone"):
        both.load(TAGS[1])
    both.load(TAGS[2])


def test_removing_leaves_nothing(folder):
    save(folder, 1)
    kept(folder).remove()
    assert not folder.exists()
