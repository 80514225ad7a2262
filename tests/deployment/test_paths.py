"""The deployment's scripts, with paths that have spaces, quotes and what a shell would execute."""

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

EXAMPLE = Path(__file__).parents[2] / "examples/deployment"
NAMES = ["a folder", "it's", 'a "b"', "$(touch executed) `touch executed`; x & y", "back\\slash"]

# In the place of Flower's programs: says how it was called, and answers as flwr does.
STAND_IN = """#!/bin/sh
exec {python} {code} "$0" "$@"
"""
CODE = """
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[1]), *sys.argv[2:]]) + "\\n")
runs = [{{"status": "finished:completed", "status-details": ""}}]
print(json.dumps({{"runs": runs}} if sys.argv[2] == "list" else {{"run-id": "7"}}))
"""


@pytest.fixture(params=NAMES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    (folder / "state" / "keys").mkdir(parents=True)
    (folder / "bin").mkdir()
    code = tmp_path / "stand_in.py"
    code.write_text(CODE.format(calls=str(tmp_path / "calls")))
    for name in ("flwr", "flower-superlink", "flower-supernode"):
        program = folder / "bin" / name
        program.write_text(STAND_IN.format(python=shlex.quote(sys.executable), code=code))
        program.chmod(0o755)
    for name in ("ca.crt", "server.crt", "server.key", "one.key", "one.pub"):
        (folder / "state" / "keys" / name).write_text("x")
    values = {
        "SERVER_HOST": "127.0.0.1",
        "SUPERLINK_PORT": 1,
        "TRUNK_PORT": 2,
        "FOLDER": folder / "state",
        "BIN": folder / "bin",
        "BIND_HOST": "127.0.0.1",
        "OUTPUT": folder / "output",
        "RUNTIME_PORT": 3,
    }
    lines = [f"{key}={shlex.quote(str(value))}\n" for key, value in values.items()]
    (folder / "settings.env").write_text("".join(lines))
    return folder


def run(place: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [EXAMPLE / script, *arguments],
        env={
            **os.environ,
            "DEPLOYMENT_SETTINGS": str(place / "settings.env"),
            "CDPATH": str(place),
        },
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(place.rglob("executed"))
    return done


def calls(place: Path) -> list[list[str]]:
    return [json.loads(line) for line in (place.parent / "calls").read_text().splitlines()]


def test_a_silo_gets_its_own_paths(place: Path) -> None:
    data = place / "data.jsonl"
    data.write_text("{}")
    done = run(place, "supernode.sh", "one", "data.jsonl")
    assert done.returncode == 0, done.stderr
    ((program, *arguments),) = calls(place)
    assert program == "flower-supernode"
    config = parse_config_args([arguments[arguments.index("--node-config") + 1]])
    assert config == {
        "silo": "one",
        "data-path": str(data),
        "state-dir": str(place / "state" / "state"),
        "cache-dir": str(place / "state" / "cache"),
    }


def test_a_run_gets_its_output_folder(place: Path) -> None:
    done = run(place, "submit.sh", "num-server-rounds=5", 'model.name="/models/a b"')
    assert done.returncode == 0, done.stderr
    (submitted, *_) = (call for call in calls(place) if call[1] == "run")
    config = parse_config_args([submitted[submitted.index("-c") + 1]])
    assert config["output-dir"] == str(place / "output")
    assert config["num-server-rounds"] == 5 and config["model.name"] == "/models/a b"
    flower = tomllib.loads((place / "state" / "flower" / "config.toml").read_text())
    named = flower["superlink"]["deployment"]["root-certificates"]
    assert named == str(place / "state" / "keys" / "ca.crt")
    # What is printed to be run can be run.
    command = done.stdout.splitlines()[0].partition("stopped by: ")[2]
    subprocess.run(["bash", "-c", command], cwd=place, check=True, capture_output=True)
    assert calls(place)[-1] == ["flwr", "stop", "7", "deployment"]
    assert not list(place.rglob("executed"))


def test_the_others_run_too(place: Path) -> None:
    for script, arguments in {
        "superlink.sh": [],
        "register.sh": ["one", str(place / "state/keys/one.pub")],
        "stop.sh": [],
    }.items():
        done = run(place, script, *arguments)
        assert done.returncode == 0, done.stderr
    started, registered = calls(place)
    assert started[0] == "flower-superlink"
    assert started[started.index("--database") + 1] == str(place / "state/superlink.sqlite")
    assert registered[3] == str(place / "state/keys/one.pub")


def test_what_flower_cannot_be_given_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "both 'kinds' of \"quotes\""
    (folder / "keys").mkdir(parents=True)
    for name in ("ca.crt", "one.key", "data.jsonl"):
        (folder / "keys" / name).write_text("x")
    settings = tmp_path / "settings.env"
    settings.write_text(
        f"SERVER_HOST=127.0.0.1\nSUPERLINK_PORT=1\nTRUNK_PORT=2\nFOLDER={shlex.quote(str(folder))}\n"
        "BIND_HOST=127.0.0.1\nRUNTIME_PORT=3\n"
    )
    environment = {**os.environ, "DEPLOYMENT_SETTINGS": str(settings)}
    for command in (["supernode.sh", "one", str(folder / "keys/data.jsonl")], ["submit.sh"]):
        done = subprocess.run(
            [EXAMPLE / command[0], *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "both kinds of quotes" in done.stderr and str(folder) in done.stderr
