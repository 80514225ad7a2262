"""`flower-split silo serve` as a process of its own: equal results, its status, and its end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from federation import wait_for
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.apps.silo_service.socket_folder import SOCKET
from flower_split.reporting import read_result

CLI = [sys.executable, "-m", "flower_split.apps.cli", "silo"]


def run(run_config, output, **node_config):
    """A run's result, its adapter's bytes, and the node of its only silo."""
    values = {**run_config, "output-dir": str(output)}
    grid = InProcessGrid(client_app, 1, run_config=values, node_config=node_config)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    adapter = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    return read_result(output / "result.json").losses("0"), adapter


@pytest.fixture
def service(folder, tmp_path):
    """A running service of `folder`, and the path of its log; killed at the end."""
    log = tmp_path / "service.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*CLI, "serve", str(folder)],
            # The fixture of the tests has this process compute on the CPU.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait(60.0)


def listens(folder, process, log):
    def looks():
        assert process.poll() is None, log.read_text()
        return (folder / SOCKET).exists()

    wait_for(looks, "the service listens", logs=log.read_text)


def status(folder):
    done = subprocess.run(
        [*CLI, "status", str(folder), "--json"], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.exhaustive
def test_a_process_of_its_own_serves_a_run_and_ends_when_told(
    folder, service, tmp_path, monkeypatch
):
    process, log = service
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = save_tiny_run(tmp_path)
    values = tiny_run_config(
        tiny, **{"strategy.min-nodes": 1, "num-server-rounds": 1, "evaluate-initial": False}
    )
    own = {"device": "cpu"}
    alone = run(values, tmp_path / "alone", **own)
    listens(folder, process, log)
    served = run(values, tmp_path / "served", **own, **{"service-dir": str(folder)})
    assert served == alone
    code, found = status(folder)
    assert (code, found["ok"], found["pid"], found["work"]) == (0, True, process.pid, "")
    assert (found["done"], found["failed"]) == (2, 0)
    assert [one["name"] for one in found["models"]] == [values["model.name"]]
    assert found["models"][0]["bytes"] > 0 and found["data"][0]["train-examples"] == 27

    process.send_signal(signal.SIGTERM)
    assert process.wait(60.0) == 0, log.read_text()
    assert list(folder.iterdir()) == [] and "Traceback" not in log.read_text()
    code, found = status(folder)
    assert code == 1 and "no silo service is running" in found["error"]
