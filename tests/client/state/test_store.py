"""A silo's states: which are offered, which stay, and what becomes of damaged ones."""

import errno
import os
import stat

import pytest
import torch
from earlier_state import write_exchange, write_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.client.state.silo_adapter import SiloAdapter
from flower_split.client.state.state_file import FORMAT, round_tag
from flower_split.client.state.store import StateStore, newest_state
from flower_split.errors import StateError
from flower_split.lowrank import Instructions, Scaling
from flower_split.optimization.moments import AVERAGES

PARAMETERS = {"a": nn.Parameter(torch.zeros(2, 3)), "b": nn.Parameter(torch.zeros(4))}
TAGS = {number: f"{number:064x}" for number in range(10)}
SCALING = Scaling(r=2, alpha=4.0)
PERSONAL = "x.lora_B.weight"


def moments(number):
    tensors = {
        f"{name}/{part}": torch.full(parameter.shape, float(number))
        for name, parameter in PARAMETERS.items()
        for part in AVERAGES
    }
    return tensors | {f"{name}/step": torch.tensor(float(number)) for name in PARAMETERS}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "silo"


def store(folder):
    return StateStore(folder, SiloAdapter(parameters=PARAMETERS, scaling=SCALING))


def save(folder, number, *, after="", server_round=None):
    store(folder).save(
        TAGS[number],
        number if server_round is None else server_round,
        SessionState(moments=moments(number), scaling=SCALING),
        after=TAGS[after] if after else "",
    )


def offered(folder):
    return [int(tag, 16) for tag in store(folder).offers()]


def file_of(folder, number):
    (path,) = folder.glob(f"*-{TAGS[number]}.safetensors")
    return path


def test_what_was_saved_is_offered_and_loaded(folder):
    assert store(folder).offers() == ()
    save(folder, 1)
    save(folder, 2, after=1)
    both = store(folder)
    assert both.offers() == (TAGS[2], TAGS[1])
    for number in (1, 2):
        loaded = both.load(TAGS[number]).moments
        assert loaded.keys() == moments(number).keys()
        assert all(torch.equal(loaded[name], t) for name, t in moments(number).items())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_silo_without_an_adapter_remembers_that_it_took_part(folder):
    empty = StateStore(folder, SiloAdapter(parameters={}, scaling=SCALING))
    empty.save(TAGS[1], 1, SessionState(scaling=SCALING), after="")
    again = StateStore(folder, SiloAdapter(parameters={}, scaling=SCALING))
    assert again.offers() == (TAGS[1],)
    assert again.load(TAGS[1]).moments == {}


def test_three_states_stay_and_the_trunks_among_them(folder):
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


@pytest.mark.medium
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
    store(folder).remove()


def write(folder, number, tensors=None, **facts):
    """A file as another program might leave it."""
    save(folder, number)
    path = file_of(folder, number)
    save_file(moments(number) if tensors is None else tensors, path, metadata=facts)
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
    adapter = SiloAdapter(parameters={"a": nn.Parameter(torch.zeros(2, 3))}, scaling=SCALING)
    other = StateStore(folder, adapter)
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
    assert "nobody else may write into it" in caplog.text
    save(folder, 2)
    assert "fresh optimizer on both sides" in caplog.text


def test_a_killed_writers_leftover_is_never_offered_and_written_over(folder):
    save(folder, 1)
    (folder / "incoming.tmp").write_bytes(file_of(folder, 1).read_bytes()[:100])
    assert offered(folder) == [1]
    save(folder, 2, after=1)
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors"] * 2


def test_moments_that_are_not_finite_are_not_saved(folder, caplog):
    broken = moments(1) | {"a/exp_avg": torch.full((2, 3), torch.nan)}
    store(folder).save(TAGS[1], 1, SessionState(moments=broken, scaling=SCALING), after="")
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
    assert "cannot be saved" in caplog.text


def test_a_state_that_vanished_is_an_error(folder):
    save(folder, 1)
    save(folder, 2, after=1)
    both = store(folder)
    both.offers()
    file_of(folder, 1).unlink()
    with pytest.raises(StateError, match="is gone"):
        both.load(TAGS[1])
    both.load(TAGS[2])


def test_removing_leaves_nothing(folder):
    save(folder, 1)
    store(folder).remove()
    assert not folder.exists()


def whole_model(folder):
    """The store of a silo that holds the whole model, and has personal tensors in it."""
    parameters = {PERSONAL: nn.Parameter(torch.zeros(3, 2))}
    instructions = Instructions(personal=frozenset(parameters))
    adapter = SiloAdapter(parameters=parameters, scaling=SCALING, instructions=instructions)
    return StateStore(folder, adapter)


def save_personal(folder, number, value=0.0, *, resume=True):
    """As `AdapterExchange` does in round `number`."""
    saving = whole_model(folder)
    resumed = saving.newest(number) if resume else None
    tensors = {PERSONAL: torch.full((3, 2), number + value)}
    personal = PersonalTensors(tensors=tensors, scale=SCALING.factor)
    saving.save(
        round_tag(number),
        number,
        SessionState(personal=personal, scaling=SCALING),
        after="" if resumed is None else resumed.tag,
    )


def rounds_in(folder):
    return sorted(int(path.name[:8]) for path in folder.iterdir())


def value_of(found):
    return found.state.personal.tensors[PERSONAL][0, 0].item()


def test_without_a_trunk_the_newest_before_a_round_is_found(folder):
    assert whole_model(folder).newest(9) is None
    for number in (1, 2, 4):
        save_personal(folder, number)
    found = [whole_model(folder).newest(before) for before in (2, 3, 4, 5, 9)]
    assert [stored.server_round for stored in found] == [1, 2, 2, 4, 4]
    assert [value_of(stored) for stored in found] == [1, 2, 2, 4, 4]
    assert found[0].state.personal.scale == 2.0
    assert whole_model(folder).newest(1) is None


def test_without_a_trunk_three_states_stay_and_a_repeated_round_replaces_its_own(folder):
    for number in range(1, 6):
        save_personal(folder, number)
    save_personal(folder, 5, 0.5)
    assert rounds_in(folder) == [3, 4, 5]
    assert value_of(whole_model(folder).newest(9)) == 5.5


def test_without_a_trunk_a_server_that_went_back_is_followed(folder):
    for number in range(1, 6):
        save_personal(folder, number)
    save_personal(folder, 4, 0.5)
    assert rounds_in(folder) == [3, 4]
    assert value_of(whole_model(folder).newest(9)) == 4.5


def test_a_state_that_resumed_from_its_own_rounds_leaves_the_earlier_ones(folder):
    for number in (1, 2, 3):
        save_personal(folder, number)
    personal = whole_model(folder).newest(4).state
    whole_model(folder).save(round_tag(3), 3, personal, after=round_tag(3))
    assert rounds_in(folder) == [1, 2, 3]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_without_a_trunk_a_damaged_file_is_passed_over_for_the_one_before_it(folder, data):
    save_personal(folder, 1)
    save_personal(folder, 2)
    newest = folder / f"00000002-{round_tag(2)}.safetensors"
    content = bytearray(newest.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # The last bytes are the tensor's; those of the header may only change its white space.
        position = data.draw(st.integers(len(content) - 24, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    newest.write_bytes(content)
    assert value_of(newest_state(folder, 9)) == 1.0
    assert newest.exists()
    assert value_of(whole_model(folder).newest(9)) == 1.0
    whole_model(folder).remove()


def test_personal_tensors_that_cannot_be_saved_are_an_error_that_names_state_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="state-dir"):
        save_personal(tmp_path / "file" / "silo", 1)


def test_personal_tensors_that_are_not_finite_are_refused_and_the_ones_before_stay(folder):
    save_personal(folder, 1)
    with pytest.raises(StateError, match="diverged; lower the learning rate"):
        save_personal(folder, 2, float("nan"))
    assert rounds_in(folder) == [1]


def test_personal_tensors_of_another_model_are_not_used(folder, caplog):
    save_personal(folder, 1)
    adapter = SiloAdapter(parameters={"y.lora_B.weight": nn.Parameter(torch.zeros(3, 2))})
    assert StateStore(folder, adapter).newest(9) is None
    assert "of another model, adapter or cut" in caplog.text


def test_the_newest_state_of_a_session_is_found_without_a_model(folder):
    assert newest_state(folder, 9) is None
    for number in (1, 2):
        save_personal(folder, number)
    assert newest_state(folder, 9).server_round == 2
    assert newest_state(folder, 2).server_round == 1
    assert newest_state(folder, 9, tag=round_tag(1)).server_round == 1
    assert newest_state(folder, 9, tag=round_tag(3)) is None


def test_states_of_an_earlier_version_are_offered_and_resumed_from(folder):
    folder.mkdir(mode=0o700)
    adapter = SiloAdapter(parameters=PARAMETERS, scaling=Scaling(r=4, alpha=8.0))
    for number in (1, 2):
        write_session(folder, number, TAGS[number], moments(number))
    earlier = StateStore(folder, adapter)
    assert earlier.offers() == (TAGS[2], TAGS[1])
    for number in (1, 2):
        loaded = earlier.load(TAGS[number])
        assert loaded.scaling == adapter.scaling
        assert all(torch.equal(loaded.moments[n], t) for n, t in moments(number).items())
    state = SessionState(moments=moments(3), scaling=adapter.scaling)
    earlier.save(TAGS[3], 3, state, after=TAGS[1])
    assert StateStore(folder, adapter).offers() == (TAGS[3], TAGS[1])


def test_states_of_an_earlier_adapter_exchange_count_as_those_of_their_rounds(folder):
    folder.mkdir(mode=0o700)
    for number in (1, 2, 3):
        write_exchange(folder, number, {PERSONAL: torch.full((3, 2), float(number))})
    assert value_of(whole_model(folder).newest(3)) == 2.0
    save_personal(folder, 3, 0.5)
    assert sorted(path.name[:14] for path in folder.iterdir()) == [
        "00000003-" + round_tag(3)[:5],
        "round-00000001",
        "round-00000002",
    ]
    assert value_of(newest_state(folder, 9)) == 3.5
