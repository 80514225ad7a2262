"""A local federation: who is waited for by name, whose keys are whose, and nothing that stays."""

import shlex
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flower_split.apps.flower import local_federation
from flower_split.apps.flower.flwr_command import FlwrError
from flower_split.apps.flower.local_federation import LocalFederation, LocalSilo
from flower_split.apps.flower.party_folder import party_folder
from flower_split.apps.flower.private_home import processes_of
from flower_split.errors import ConfigError

pytestmark = pytest.mark.medium

PROGRAM = """
import socket, sys, time
given = sys.argv[1:]
if "NOT_LET_IN" in " ".join(given):
    sys.exit("this key is not registered")
server = socket.create_server(("127.0.0.1", int(given[given.index("--port") + 1])))
time.sleep(600)
"""
"""In the place of Flower's programs: listens, and is there until it is stopped."""

SILOS = [LocalSilo(name=name) for name in ("clinic-a", "clinic-b", "clinic-c")]


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Silos are connected one a look, in the order of their registration, up to `most`."""
    code, program = tmp_path / "program.py", tmp_path / "program"
    code.write_text(PROGRAM)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {code} "$@"\n')
    program.chmod(0o755)
    names, looks = list[str](), iter(range(10_000))
    found = SimpleNamespace(most=len(SILOS))

    def answer(_environment, *arguments):  # type: ignore[no-untyped-def]
        if arguments[1] == "register":
            names.append(arguments[-1])
            return {"node-id": 7 * len(names)}
        online = min(next(looks), found.most)
        return {
            "nodes": [
                {"node-id": str(7 * (i + 1)), "status": "online" if i < online else "registered"}
                for i in range(len(names))
            ]
        }

    monkeypatch.setattr(local_federation, "binary", lambda _name: str(program))
    monkeypatch.setattr(local_federation, "flwr_json", answer)
    monkeypatch.setattr(local_federation, "PAUSE", 0.01)
    return found


def test_who_is_waited_for_is_told_by_name(flower, tmp_path: Path) -> None:
    told = list[str]()
    folder = tmp_path / "parties"
    with LocalFederation(folder, SILOS, told.append) as federation:
        home = Path(federation.environment["FLWR_HOME"])
        assert len(processes_of(home)) >= 4
    assert processes_of(home) == []
    assert told == [
        "waiting for 3 of 3 silos: clinic-a, clinic-b, clinic-c",
        "waiting for 2 of 3 silos: clinic-b, clinic-c",
        "waiting for 1 of 3 silos: clinic-c",
        "connected: clinic-a, clinic-b, clinic-c",
    ]


def test_every_party_has_its_own_keys_which_are_used_again(flower, tmp_path: Path) -> None:
    folder = tmp_path / "parties"
    with LocalFederation(folder, SILOS[:1], lambda _: None) as federation:
        settings = federation.trunk_settings
    kept = {path: path.read_bytes() for path in folder.rglob("keys/*")}
    assert {path.relative_to(folder).as_posix() for path in kept} == {
        *(f"server/keys/{name}" for name in ("ca.crt", "server.crt", "server.key")),
        *(f"clinic-a/keys/{name}" for name in ("ca.crt", "clinic-a.key", "clinic-a.pub")),
        *(f"clinic-a/keys/{name}" for name in ("clinic-a-trunk.crt", "clinic-a-trunk.key")),
    }
    assert settings["tls.client-ca"] == str(folder / "server/keys/ca.crt")
    for path in folder.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with LocalFederation(folder, SILOS[:2], lambda _: None):
        pass
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("hosts_trunk", [True, False])
def test_silos_trust_what_a_trunk_service_invites_them_with(
    flower, tmp_path: Path, hosts_trunk: bool
) -> None:
    federation = LocalFederation(
        tmp_path / "parties", SILOS[:1], lambda _: None, hosts_trunk=hosts_trunk
    )
    with federation:
        home = Path(federation.environment["FLWR_HOME"])
        started = [" ".join(process.cmdline()) for process in processes_of(home)]
    assert any("trunk-ca" in one for one in started) == hosts_trunk
    assert bool(federation.trunk_settings) == hosts_trunk


def test_a_silo_that_is_not_let_in_is_named_and_nothing_stays(flower, tmp_path: Path) -> None:
    flower.most = 1
    silos = [SILOS[0], LocalSilo(name="clinic-b", data="/data/NOT_LET_IN")]
    federation = LocalFederation(tmp_path / "parties", silos, lambda _: None)
    with pytest.raises(FlwrError, match=r"SuperNode of clinic-b ended .*\n.*not registered"):
        federation.__enter__()
    assert processes_of(tmp_path / "parties/server/flower") == []


def test_the_folder_is_kept_where_that_is_wanted(tmp_path: Path) -> None:
    with party_folder(None) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    with party_folder(tmp_path / "kept") as folder:
        (folder / "ca").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with party_folder(tmp_path / "kept") as again:
        assert again == folder


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds something else"), party_folder(tmp_path / "mine"):
        pass
    with (
        pytest.raises(ConfigError, match="--keep"),
        party_folder(tmp_path / "mine/notes.txt/below"),
    ):
        pass
