"""What a silo keeps: generations, and files that were damaged."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.client.state.kept_state import Generation, KeptState
from flower_split.errors import StateError


def generation(number, value=0.0):
    tensors = {"x.lora_B.weight": torch.full((3, 2), float(number) + value)}
    return Generation(server_round=number, scale=2.0, tensors=tensors)


def value(found):
    return found.tensors["x.lora_B.weight"][0, 0].item()


def test_the_newest_before_a_round_is_found(tmp_path):
    kept = KeptState(tmp_path / "silo")
    assert kept.newest(9) is None
    for number in (1, 2, 4):
        kept.save(generation(number))
    assert [kept.newest(before).server_round for before in (2, 3, 4, 5, 9)] == [1, 2, 2, 4, 4]
    assert kept.newest(1) is None
    assert kept.newest(5).scale == 2.0


def test_three_generations_are_kept_and_a_repeated_round_replaces_its_own(tmp_path):
    kept = KeptState(tmp_path / "silo")
    for number in range(1, 6):
        kept.save(generation(number))
    kept.save(generation(5, 0.5))
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        f"round-{number:08d}.safetensors" for number in (3, 4, 5)
    ]
    assert value(kept.newest(9)) == 5.5


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_damaged_file_is_passed_over_for_the_one_before_it(tmp_path_factory, data):
    kept = KeptState(tmp_path_factory.mktemp("kept") / "silo")
    kept.save(generation(1))
    kept.save(generation(2))
    newest = kept.folder / "round-00000002.safetensors"
    content = bytearray(newest.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # The last bytes are the tensor's; those of the header may only change its white space.
        position = data.draw(st.integers(len(content) - 24, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    newest.write_bytes(content)
    assert value(kept.newest(9)) == 1.0


def test_a_folder_that_cannot_be_written_is_an_error_that_names_state_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="state-dir"):
        KeptState(tmp_path / "file" / "silo").save(generation(1))
