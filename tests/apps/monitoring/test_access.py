"""Who sees the page: a browser on this machine that meant it, or whoever has the token."""

import stat

import pytest

from flower_split.apps.monitoring.access import Access, read_token
from flower_split.errors import StateError


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:1", "[::1]:8765", "localhost"])
def test_loopback_by_its_name_is_let_in(host):
    assert Access().admits(host, "")


@pytest.mark.parametrize("host", ["evil.example:8765", "evil.example", "", "10.0.0.1:8765", ":1"])
def test_another_sites_name_that_leads_here_is_not(host):
    assert not Access().admits(host, "")


def test_a_token_is_needed_wherever_one_is_set():
    access = Access("a" * 20)
    assert access.admits("server.example:8765", "a" * 20)
    for told in ("", "a" * 19, "a" * 21, "b" * 20, "\ud800é"):
        assert not access.admits("localhost:8765", told)


def test_a_token_is_made_for_this_user_alone_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    token, file = read_token(None)
    assert len(token) > 40 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_token(None) == (token, file)
    assert read_token(tmp_path / "other")[0] != token


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"short\n", 0o600, "at least 16 printable"),
        (b"x" * 20, 0o644, "may be read by others: run `chmod 600"),
        (b"\xff" * 20, 0o600, "cannot be used"),
    ],
)
def test_a_token_file_that_is_of_no_use_is_named(tmp_path, content, mode, said):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(StateError, match=said):
        read_token(file)


def test_a_link_is_no_token_file(tmp_path):
    (tmp_path / "real").write_bytes(b"x" * 20)
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="symbolic link"):
        read_token(tmp_path / "link")
