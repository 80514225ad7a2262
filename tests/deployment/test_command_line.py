"""`flower-split submit`, `status`, `logs` and `stop` of a real deployment."""

import json
import subprocess
import sys

import pytest
from federation import SECONDS

from flower_split.reporting import read_result

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture
def flower_split(start_federation, tmp_path):
    federation = start_federation(2)

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "flower_split.apps.cli", *map(str, arguments)],
            env=federation.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    return command


def test_runs_are_submitted_shown_and_stopped_by_name(flower_split, tiny, tmp_path):
    output = tmp_path / "output"
    settings = ["-c", f'output-dir="{output}" strategy.fraction-evaluate=1.0']
    status, out, err = flower_split("submit", tiny.app, *settings)
    assert (status, err) == (0, "")
    assert "submitted as federation-test-1" in out
    assert "round 1 of 1: train-loss" in out and "silos 0, 1" in out
    assert f"its results are in {output} on the server" in out
    assert read_result(output / "result.json").silos == ["0", "1"]

    status, out, _ = flower_split("logs")
    assert status == 0 and "round 1 of 1: train-loss" in out

    # What every silo refuses is told once, by their names, and the status is true.
    status, out, err = flower_split("submit", tiny.app, "-c", 'data.path="/nowhere.jsonl"')
    assert status == 1
    assert err.count("/nowhere.jsonl") == 1 and "silos 0, 1: " in err

    status, out, _ = flower_split("submit", tiny.app, "--detach", "-c", "train.local-steps=100000")
    assert status == 0 and "federation-test-3" in out
    status, out, _ = flower_split("status", "--json")
    found = json.loads(out)
    assert found["silos-connected"] == 2
    ends = {one["name"]: one["status"] for one in found["runs"]}
    assert ends["federation-test-1"] == "finished:completed"
    assert ends["federation-test-2"] == "finished:failed"
    status, out, _ = flower_split("status", "federation-test-2")
    assert status == 1 and "/nowhere.jsonl" in out
    status, out, _ = flower_split("stop", "federation-test-3")
    assert status == 0 and "federation-test-3 ended as finished:stopped" in out
    status, _, err = flower_split("stop", "federation-test-3")
    assert status == 1 and "is not going" in err
