import pytest

from flower_split.errors import HandshakeError
from flower_split.server.silo_names import SiloNames


def test_a_name_is_one_nodes() -> None:
    names = SiloNames()
    assert names.claim("north", 1) == names.claim("north", 1) == names.claim("south", 2) == ""
    with pytest.raises(HandshakeError, match=r"'north' too.*`silo` in its node config"):
        names.claim("north", 2)
    names.note_connected([1, 2])
    with pytest.raises(HandshakeError):
        names.claim("north", 2)


def test_a_node_that_came_back_under_another_id_takes_its_name_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = SiloNames()
    names.claim("north", 1)
    names.note_connected([2, 3])
    assert names.claim("north", 3) == ""
    assert "'north' has started again" in caplog.text
    with pytest.raises(HandshakeError):
        names.claim("north", 2)


def test_a_node_has_one_name_so_that_what_is_kept_stays_bounded() -> None:
    names = SiloNames()
    former = [names.claim(f"name {number}", 1) for number in range(5)]
    assert former == ["", "name 0", "name 1", "name 2", "name 3"]
    assert names.claim("name 0", 2) == ""
