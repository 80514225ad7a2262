"""`flower-split silo status` and `serve`, as far as they need no process of their own."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from pretended_service import pretending
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.silo_service import frames, greeting
from flower_split.apps.silo_service.socket_folder import listening
from flower_split.proto.silo_pb2 import Answer, HeldData, HeldModel, Request, Status


@pytest.fixture
def folder():
    made = Path(tempfile.mkdtemp(prefix="fss-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def told(connection):
    """The service's part of a question for its status."""
    frames.receive(connection, Request, seconds=30.0)
    frames.send(connection, Answer(greeting=greeting.greeting()), seconds=30.0)
    frames.receive(connection, Request, seconds=30.0)
    status = Status(
        pid=12,
        work="train of run 7",
        done=3,
        most_model_bytes=1 << 30,
        models=[HeldModel(name="m", device="cpu", bottom_layers=1, num_bytes=1 << 20)],
        data=[HeldData(run_id=2**63 + 1, train_examples=4)],
    )
    frames.send(connection, Answer(status=status), seconds=30.0)


def test_the_status_is_told_to_people(folder):
    with pretending(folder, told):
        done = CliRunner().invoke(cli, ["silo", "status", str(folder)])
    assert done.exit_code == 0
    assert "process 12 serves for 0 s: works on train of run 7" in done.stdout
    assert "model: m, 1 bottom and 0 top layers on cpu, 1.0 MiB" in done.stdout


def test_the_status_is_told_to_programs(folder):
    with pretending(folder, told):
        done = CliRunner().invoke(cli, ["silo", "status", str(folder), "--json"])
    found = json.loads(done.stdout)
    assert found["ok"] and found["done"] == 3 and found["models"][0]["bytes"] == 1 << 20
    assert found["data"][0]["run-id"] == str(2**63 + 1)


def test_without_a_service_the_status_is_an_error(folder):
    done = CliRunner().invoke(cli, ["silo", "status", str(folder)])
    assert done.exit_code == 1 and "start flower-split silo serve" in done.stderr


def test_a_second_service_in_one_folder_is_an_error(folder):
    with listening(folder):
        done = CliRunner().invoke(cli, ["silo", "serve", str(folder)])
    assert done.exit_code == 1 and "another silo service has" in done.stderr
