"""A whole secured deployment by one command: its run, and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flower_split.reporting import read_result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUND = "num-server-rounds=1 evaluate-initial=false train.local-steps=1 data.max-examples=16"


def living(folder: Path) -> list[str]:
    """Processes whose Flower home is below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME", "").startswith(f"{folder}/"):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def command(*arguments: object) -> list[str]:
    local = [sys.executable, "-m", "flower_split.apps.cli", "deployment", "local"]
    return [*local, "--silo", "clinic-a", "--silo", "clinic-b", *map(str, arguments)]


def test_a_run_by_one_command(tmp_path: Path) -> None:
    kept, output = tmp_path / "kept", tmp_path / "output"
    options = ["--keep", kept, "--output-dir", output, "-c", ROUND]
    done = subprocess.run(
        command(*options), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "connected: clinic-a, clinic-b" in done.stdout
    assert "round 1 of 1" in done.stdout and "silos clinic-a, clinic-b" in done.stdout
    result = read_result(output / "result.json")
    assert result.silos == ["clinic-a", "clinic-b"] and not result.failure
    assert (output / "adapter/adapter_model.safetensors").is_file()
    assert result.config["tls.mode"] == "files" and result.config["tls.client-ca"]
    assert living(kept) == []
    assert "PRIVATE KEY" not in done.stdout + done.stderr


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command("--keep", tmp_path / "kept"),
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("submitted as"):
            break
    process.send_signal(signal.SIGINT)
    said += process.stdout.read()
    assert process.wait(180) == 130, said
    assert "interrupted; everything was stopped" in said
    assert living(tmp_path / "kept") == []
