"""Runs of a deployment by their names, over Flower's commands: never an id, never a false 0."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.flower import deployed
from flower_split.apps.flower.deployed import Deployment
from flower_split.apps.flower.flwr_command import FlwrError
from flower_split.apps.flower.submitted import FOLDER, Submitted, remember
from flower_split.user_folders import user_folder

LOG = [
    "INFO :      the trunk listens on 0.0.0.0:9443, TLS\n",
    "INFO :      round 1 of 2: train-loss 4.077; silos north, south; 16.3 s\n",
]


def row(app: str, run_id: int, status: str, pending: str, details: str = "") -> dict[str, str]:
    return {
        "run-id": str(run_id),
        "fab-name": app,
        "status": status,
        "status-details": details,
        "elapsed": "00:01:02",
        "pending-at": pending,
    }


class FakeFlower:
    """Answers as `flwr … --format json` does, of runs that are written down here."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.runs = [
            row("notes", 7_000_000_000_000_000_001, "finished:completed", "2026-01-01 10:00:00Z"),
            row("notes", 9_000_000_000_000_000_003, "running", "2026-01-03 10:00:00Z"),
            row("other", 8_000_000_000_000_000_002, "finished:failed", "2026-01-02", "no silo"),
        ]
        self.log_status = 0
        self.ends_as = "running"
        """What becomes of a run that is submitted."""

    def json(self, environment, *arguments):  # type: ignore[no-untyped-def]
        self.asked.append(arguments)
        match arguments[0]:
            case "list":
                wanted = (
                    arguments[arguments.index("--run-id") + 1 :][:1]
                    if "--run-id" in (arguments)
                    else ()
                )
                return {"runs": [r for r in self.runs if not wanted or r["run-id"] in wanted]}
            case "supernode":
                return {"nodes": [{"status": "online"}, {"status": "online"}, {"status": "x"}]}
            case "stop":
                for one in self.runs:
                    if one["run-id"] == arguments[1]:
                        one["status"] = "finished:stopped"
                return {"success": True}
            case _:
                self.runs.append(row("notes", len(self.runs), self.ends_as, "2026-01-04"))
                return {"success": True, "run-id": self.runs[-1]["run-id"]}

    def lines(self, environment, *arguments):  # type: ignore[no-untyped-def]
        self.asked.append(arguments)
        return FakeProcess(self.log_status)


class FakeProcess:
    def __init__(self, status: int) -> None:
        self.stdout = iter(LOG)
        self.status = status

    def wait(self) -> int:
        return self.status

    def terminate(self) -> None:
        pass


@pytest.fixture
def flower(monkeypatch):
    fake = FakeFlower()
    monkeypatch.setattr(deployed, "flwr_json", fake.json)
    monkeypatch.setattr(deployed, "flwr_lines", fake.lines)
    monkeypatch.setattr("flower_split.apps.simulate.flwr_json", fake.json)
    return fake


def flower_split(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_runs_are_numbered_by_app_in_the_order_of_their_submission(flower) -> None:
    assert [run.name for run in Deployment().runs()] == ["notes-1", "other-1", "notes-2"]
    assert Deployment().run().name == "notes-2"
    assert Deployment().run("notes-1").run_id == "7000000000000000001"
    assert Deployment().run("7000000000000000001").name == "notes-1"


def test_a_run_that_there_is_not_names_the_nearest(flower) -> None:
    with pytest.raises(FlwrError, match=r"no run 'nots-2'; did you mean 'notes-2'\?"):
        Deployment().run("nots-2")
    flower.runs.clear()
    with pytest.raises(FlwrError, match="has no run"):
        Deployment().run()


def test_status_shows_names_and_no_ids(flower) -> None:
    status, out, _ = flower_split("status")
    assert status == 0
    assert "2 silos connected" in out and "notes-2" in out
    assert "000000000000" not in out


def test_status_of_a_run_shows_its_last_round_and_fails_where_it_failed(flower) -> None:
    status, out, _ = flower_split("status", "notes-2")
    assert status == 0 and "silos north, south" in out and "000000000000" not in out
    status, out, _ = flower_split("status", "other-1")
    assert status == 1 and "no silo" in out
    status, out, _ = flower_split("status", "other-1", "--json")
    assert status == 1 and json.loads(out)["run"]["status"] == "finished:failed"


def test_what_flower_tells_in_its_own_way_is_told_as_people_read_it(flower) -> None:
    flower.runs[1] |= {"elapsed": "62.382145", "status-details": "N/A"}
    _, out, _ = flower_split("status", "notes-2")
    assert "1 min 2 s" in out and "N/A" not in out


def test_the_connection_is_passed_on(flower) -> None:
    flower_split("status", "--superlink", "hospital")
    assert all("hospital" in one for one in flower.asked)


def test_logs(flower) -> None:
    status, out, _ = flower_split("logs", "notes-1")
    assert status == 0 and "round 1 of 2: train-loss 4.077" in out
    flower.log_status = 1
    status, _, err = flower_split("logs", "notes-1")
    assert status == 1 and "the log of notes-1 cannot be read" in err


@pytest.mark.parametrize("command", ["logs", "status"])
def test_a_run_that_waits_has_no_log_yet(command, flower, monkeypatch) -> None:
    flower.runs[1]["status"] = "pending"
    status, out, _ = flower_split(command, "notes-2")
    told = {
        "logs": "notes-2 has nothing to tell yet, its status is pending",
        "status": "no round has ended",
    }
    assert status == 0 and told[command] in out
    assert not any(one[0] == "log" for one in flower.asked)


def test_a_log_without_a_line_is_not_waited_for(flower, monkeypatch) -> None:
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(deployed, "LOG_SECONDS", 0.1)
    monkeypatch.setattr(
        deployed,
        "flwr_lines",
        lambda *_: subprocess.Popen(silent, stdout=subprocess.PIPE, text=True),
    )
    status, out, _ = flower_split("logs", "notes-2")
    assert status == 0 and "notes-2 has nothing to tell yet, its status is running" in out


def test_followed_logs_fail_with_their_run(flower) -> None:
    status, _, err = flower_split("logs", "other-1", "--follow")
    assert status == 1 and "finished:failed: no silo" in err


def test_stop_waits_for_the_end_and_refuses_what_has_ended(flower) -> None:
    status, out, _ = flower_split("stop")
    assert status == 0 and "notes-2 ended as finished:stopped" in out
    status, _, err = flower_split("stop", "notes-2")
    assert status == 1 and "is not going: it ended as finished:stopped" in err


def test_a_run_that_does_not_end_is_an_error(flower, monkeypatch) -> None:
    monkeypatch.setattr(deployed, "STOP_SECONDS", 0.0)
    answer = flower.json

    def deaf(environment, *arguments):  # type: ignore[no-untyped-def]
        return {} if arguments[0] == "stop" else answer(environment, *arguments)

    monkeypatch.setattr(deployed, "flwr_json", deaf)
    run = Deployment().run()
    with pytest.raises(FlwrError, match="was told to stop and goes on"):
        Deployment().stop(run, sleep=lambda _: None)


@pytest.mark.medium
def test_submit_follows_to_the_end(flower, tmp_path) -> None:
    app = str(tmp_path / "app")
    assert flower_split("new", app)[0] == 0
    status, out, _ = flower_split("submit", app, "--detach", "-c", "lora.r=4")
    assert status == 0 and "submitted as notes-3" in out
    assert "lora.r=4" in flower.asked[0]
    assert "warning  address: trunk.host 127.0.0.1 is loopback" in out
    flower.ends_as = "finished:failed"
    status, out, err = flower_split("submit", app)
    assert (
        status == 1 and "round 1 of 2" in out and "error: the run ended as finished:failed" in err
    )
    flower.ends_as = "finished:completed"
    status, out, _ = flower_split("submit", app, "--json", "-c", 'output-dir="/on/the/server"')
    assert status == 0 and json.loads(out)["run"]["status"] == "finished:completed"


@pytest.mark.medium
def test_resume_submits_the_same_again(flower, tmp_path) -> None:
    app = str(tmp_path / "app")
    assert flower_split("new", app)[0] == 0
    flower.ends_as = "finished:failed"
    flower_split("submit", app, "--detach", "-c", 'lora.r=4 output-dir="/on/the/server"')
    flower.ends_as = "finished:completed"
    asked = len(flower.asked)
    status, out, _ = flower_split("resume", "-c", "num-server-rounds=9")
    assert status == 0 and "submitted as notes-4, which resumes notes-3" in out
    (submitted,) = (one for one in flower.asked[asked:] if one[0] == "run")
    for setting in (
        "lora.r=4",
        'output-dir="/on/the/server"',
        "resume=true",
        "num-server-rounds=9",
    ):
        assert setting in submitted[-1]
    assert flower_split("resume", "--detach")[0] == 0  # one that resumed another


@pytest.mark.medium
def test_what_kept_nothing_is_not_resumed(flower, tmp_path) -> None:
    app = str(tmp_path / "app")
    flower_split("new", app)
    flower.ends_as = "finished:failed"
    flower_split("submit", app, "--detach")
    asked = len(flower.asked)
    status, out, _ = flower_split("resume")
    assert status == 1 and "resume takes up the checkpoints in output-dir" in out
    assert not [one for one in flower.asked[asked:] if one[0] == "run"]


def test_what_goes_on_or_came_from_elsewhere_is_not_resumed(flower) -> None:
    status, _, err = flower_split("resume", "notes-2")
    assert status == 1 and "notes-2 has not ended" in err and "flower-split stop notes-2" in err
    status, _, err = flower_split("resume", "other-1")
    assert status == 1 and "other-1 was not submitted from here" in err


@pytest.mark.parametrize("content", [b"", b"[]", b'{"app": "/x", "overrides": 3}'])
def test_a_record_that_cannot_be_read_is_an_error(content, flower) -> None:
    remember("8000000000000000002", Submitted(app=Path("/x"), overrides={}))
    (file,) = submitted_folder().iterdir()
    file.write_bytes(content)
    status, _, err = flower_split("resume", "other-1")
    assert status == 1 and "other-1" in err and "cannot be read" in err


def submitted_folder() -> Path:
    return user_folder("XDG_STATE_HOME", ".local/state", key="XDG_STATE_HOME") / FOLDER


@pytest.mark.medium
def test_a_key_that_the_app_lacks_is_submitted_with_it(flower, tmp_path) -> None:
    """Flower replaces only keys that the app has: it is given a copy with all that are set."""
    example = Path(__file__).parents[3] / "examples/real_model"
    status, out, err = flower_split("submit", str(example), "--detach", "-c", "checkpoint.keep=3")
    assert status == 0, out + err
    (submitted,) = (one for one in flower.asked if one[0] == "run")
    assert "checkpoint.keep=3" in submitted[-1] and submitted[1] != str(example)


@pytest.mark.medium
def test_data_beside_the_app_is_not_submitted(flower, tmp_path) -> None:
    flower_split("new", str(tmp_path / "app"))
    project = tmp_path / "app/pyproject.toml"
    project.write_text(project.read_text().replace("fab-include", "# fab-include"))
    (tmp_path / "app/.gitignore").unlink()
    (tmp_path / "app/notes.jsonl").write_text("a patient\n")
    status, out, _ = flower_split("submit", str(tmp_path / "app"))
    assert status == 1 and "notes.jsonl (10 B, examples)" in out
    assert flower.asked == []
