"""A real simulation that is killed and resumed ends as an uninterrupted one, to the bit."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from federation import wait_for, write_app
from run_outcome import outcome
from short_folder import processes_in, short_folder
from tiny_checkpoint import tiny_run_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS, SILOS = 3, 3


@pytest.fixture(scope="module")
def simulated(tiny, tmp_path_factory):
    """Starts simulations of one app, given their output folder, in one temporary folder."""
    config = tiny_run_config(
        tiny,
        **{
            "num-server-rounds": ROUNDS,
            "strategy.name": "fedadam",
            "lora.dropout": 0.1,
            "train.local-steps": 40,
            "round-timeout": 600.0,
        },
    )
    home = tmp_path_factory.mktemp("simulated")
    app = write_app(home / "app", config)
    with short_folder() as folder:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",  # equality to the bit is the CPU's
            "TMPDIR": str(folder),
            "XDG_STATE_HOME": str(home / "state"),
        }

        def start(output, *changes):
            command = [sys.executable, "-m", "flower_split.apps.simulate", str(app)]
            command += ["--silos", str(SILOS), "--output-dir", str(output)]
            with (home / "log").open("ab") as log:
                return subprocess.Popen(
                    [*command, "-c", " ".join(changes)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

        yield start, folder
        assert not processes_in(folder)


@pytest.fixture(scope="module")
def whole(simulated, tmp_path_factory):
    """The outcome of the run that nobody killed, and the seconds of its shortest round."""
    start, _ = simulated
    output = tmp_path_factory.mktemp("whole")
    assert start(output, "resume=false").wait() == 0
    report = json.loads((output / "result.json").read_bytes())
    return outcome(output), min(
        one["seconds"] for one in report["rounds"] if one["server_round"] > 0
    )


def server(folder):
    """The process of the ServerApp, which in a simulation starts the silos' too."""
    named = [p for p in processes_in(folder) if "flwr-simulation" in " ".join(p.cmdline())]
    return named[:1]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "victims",
    [server, processes_in],
    ids=["server", "everything"],
)
def test_a_killed_simulation_is_resumed(simulated, whole, tmp_path, victims):
    start, folder = simulated
    wanted, seconds = whole
    output = tmp_path / "output"
    running = start(output, "resume=true")
    saved = output / "checkpoints" / "round-00001"
    wait_for(lambda: saved.exists() or running.poll() is not None, "the first round is saved")
    time.sleep(random.Random(victims.__name__).uniform(0, seconds))
    assert running.poll() is None
    killed = victims(folder)
    assert killed
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    running.terminate()  # Flower itself finds out after a minute only
    assert running.wait() != 0
    assert not (output / "checkpoints" / f"round-{ROUNDS:05d}").exists()
    wait_for(lambda: not processes_in(folder), "nothing of the killed run is left")
    assert start(output, "resume=true").wait() == 0
    assert outcome(output) == wanted
