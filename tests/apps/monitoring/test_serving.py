"""`flower-split monitor`: what it refuses before it listens."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.commands.monitor import DEFAULT
from flower_split.config.address import Address


def monitor(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["monitor", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    assert Address.parse(DEFAULT).is_loopback


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, _, err = monitor(tmp_path, "--address", address)
    assert status == 1 and f"--address {address} cannot be listened on: it is in use" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--address", "localhost"), "--address must be host:port"),
        (("--address", "203.0.113.1:0"), "cannot be listened on"),
        (("--token-file", "/proc/none/token"), "cannot be used"),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], said: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    status, _, err = monitor(tmp_path, *arguments)
    wrongly = said.startswith("--address")
    assert status == (2 if wrongly else 1) and err.startswith("error: ") and said in err


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    status, _, err = monitor(tmp_path / "none")
    assert status == 1 and f"there is no folder {tmp_path / 'none'}" in err
