"""The simulation runner: a run from start to end, and nothing left of it, however it ends.

The app under test does no learning: what is tested here is the life of the processes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_folder import processes_in, short_folder

from flower_split.apps.flower.local_superlink import LocalSuperLinkError
from flower_split.apps.simulate import check_output, main, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = """
[project]
name = "counting"
version = "0.0.1"
description = "Counts silos"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "counting.app:server"
clientapp = "counting.app:client"

[tool.flwr.app.config]
output-dir = ""
silos = 2
then = "end"
"""

APP = """
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def count(grid, context):
    while len(list(grid.get_node_ids())) < context.run_config["silos"]:
        time.sleep(0.1)
    ask = [
        Message(RecordDict({"config": ConfigRecord({})}), dst_node_id=node, message_type="query")
        for node in grid.get_node_ids()
    ]
    replies = list(grid.send_and_receive(ask))
    Path(context.run_config["output-dir"], "silos").write_text(str(len(replies)))
    if context.run_config["then"] == "fail":
        raise RuntimeError("the app failed on purpose")
    while context.run_config["then"] == "wait":
        time.sleep(0.1)


@client.query()
def answer(message, context):
    return Message(RecordDict({"config": ConfigRecord({})}), reply_to=message)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "counting").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "counting/__init__.py").write_text("")
    (folder / "counting/app.py").write_text(APP)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no temporary folder."""
    with short_folder() as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield
        assert not [process.name() for process in processes_in(folder)]
        assert not list(folder.glob("flower-split-*"))


def test_a_run_ends_with_its_output(
    app: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new folder" / "output"
    arguments = [str(app), "--silos", "3", "--output-dir", str(output), "-c", "silos=3"]
    assert main(arguments) == 0
    assert (output / "silos").read_text() == "3"
    assert "Starting Flower Simulation" in (output / "run.log").read_text()
    said = capfd.readouterr().out
    assert "Flower" not in said and "Traceback" not in said


def test_a_failed_run_is_an_error_with_the_reason(app: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalSuperLinkError, match=r"finished:failed.*the app failed on purpose"):
        simulate(app, silos=2, output_dir=tmp_path, run_config=['then="fail"'])


def test_an_unknown_key_is_refused_before_anything_runs(
    app: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(app), "-c", "no-such-key=1"]) == 1
    assert "no-such-key: the app has no such key" in capfd.readouterr().err


def test_a_terminated_run_stops_everything(app: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flower_split.apps.simulate", str(app)]
    command += ["--silos", "2", "--output-dir", str(tmp_path), "-c", 'then="wait"']
    runner = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "silos").exists():
        assert runner.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(runner.pid, signal.SIGTERM)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "interrupted" in said and "Traceback" not in said


def test_an_output_folder_is_tried_and_not_left(tmp_path):
    check_output(tmp_path / "runs" / "first")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LocalSuperLinkError, match=r"cannot be made: .*--output-dir"):
        check_output(tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
