"""The deployment example: every script runs and leaves nothing; units are well formed."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flower_split.apps.folder.app import App
from flower_split.config.run_config import run_keys
from flower_split.reporting import read_result

EXAMPLE = Path(__file__).parents[2] / "examples/deployment"
SHELL = sorted(EXAMPLE.glob("*.sh"))
UNITS = sorted(EXAMPLE.glob("systemd/*.service"))


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )


def living(folder):
    """Processes of a deployment below `folder`, by the variable that all of them have."""
    found = []
    for process in psutil.process_iter():
        try:
            settings = process.environ().get("DEPLOYMENT_SETTINGS", "")
            if settings.startswith(f"{folder}/") and process.is_running():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder of what the test starts; empty again at its end."""
    folder = Path("/tmp") / f"fsd-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def heeds_interrupts():
    """What is started heeds SIGINT, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = run("shellcheck", "-x", script, cwd=EXAMPLE)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_reads_the_unit(unit, tmp_path):
    """With the script's path put to where it is here."""
    text = unit.read_text().replace("/opt/flower-split/deployment", str(EXAMPLE))
    copy = tmp_path / unit.name.replace("@.", "@one.")
    copy.write_text(text)
    done = run("systemd-analyze", "verify", copy)
    ours = [line for line in done.stderr.splitlines() if copy.name in line]
    assert ours == [] and done.returncode == 0, done.stderr


def test_scripts_can_be_run():
    assert all(
        script.stat().st_mode & stat.S_IXUSR for script in SHELL if "common" not in str(script)
    )


def test_a_run_may_set_every_key():
    """Flower replaces only keys that the app has."""
    app = App.read(EXAMPLE / "app")
    assert [key for key in run_keys() if not app.reads(key)] == []
    assert app.settings["strategy.min-nodes"] == 3


def test_the_image_is_made_of_files_that_exist():
    lines = (EXAMPLE / "Containerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    names = [name for words in copied for name in words if not name.startswith("--")]
    assert len(names) > 5
    assert [name for name in names if not list(EXAMPLE.parents[1].glob(name))] == []
    assert not [name for name in names if name.rstrip("/").endswith("examples/deployment")]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('a warning\n{"success": true, "run-id": "7"}', 0, "7"),
        ('{"runs": [{"status": "running"}]}', 1, "no answer that can be read"),
        ('{"success": false, "error-message": "no such app"}', 1, "no such app"),
        ("nothing", 1, "no answer that can be read"),
    ],
)
def test_flowers_answers_are_read(text, status, said):
    done = run(sys.executable, EXAMPLE / "answer.py", "run-id", input=text)
    assert done.returncode == status
    assert said in done.stdout + done.stderr


def test_a_result_that_is_none_is_not_shown(tmp_path):
    done = run(sys.executable, EXAMPLE / "show.py", tmp_path)
    assert done.returncode == 1 and "result.json" in done.stderr


def test_stop_leaves_alone_a_process_that_is_not_flowers(tmp_path):
    """A number in an old file may by now be another process's: here, this test's own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/superlink.pid").write_text(f"{os.getpid()}\n")
    (tmp_path / "settings.env").write_text(f"FOLDER={tmp_path}\n")
    settings = {"DEPLOYMENT_SETTINGS": str(tmp_path / "settings.env")}
    done = run(EXAMPLE / "stop.sh", env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("script", ["superlink.sh", "supernode.sh", "register.sh"])
def test_a_missing_key_is_named(script, tmp_path):
    settings = tmp_path / "settings.env"
    settings.write_text(
        f"SERVER_HOST=127.0.0.1\nSUPERLINK_PORT=1\nTRUNK_PORT=2\nFOLDER={tmp_path}\n"
        "BIND_HOST=127.0.0.1\nRUNTIME_PORT=3\n"
    )
    given = {"supernode.sh": ["one", "/x"], "register.sh": ["one", tmp_path / "one.pub"]}
    done = run(
        EXAMPLE / script,
        *given.get(script, []),
        env={**os.environ, "DEPLOYMENT_SETTINGS": str(settings)},
    )
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "missing" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_on_one_machine(tmp_path, temporary):
    output = tmp_path / "the run's output"
    one_round = ("num-server-rounds=1", "evaluate-initial=false")
    done = run(sys.executable, EXAMPLE / "deployment.py", output, *one_round)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loads into the uncut model" in done.stdout
    assert {path.name for path in output.iterdir()} >= {"adapter", "result.json"}
    assert read_result(output / "result.json").silos == ["numpy", "torch", "transformers"]
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    assert living(temporary) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_run_that_fails_fails_the_command(tmp_path, temporary):
    output = tmp_path / "output"
    done = run(sys.executable, EXAMPLE / "deployment.py", output, "split.bottom-layers=99")
    assert done.returncode == 1
    assert "finished:failed" in done.stderr and "99" in done.stderr
    assert "everything was stopped" in done.stderr
    assert living(temporary) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_ctrl_c_leaves_nothing(tmp_path, temporary, heeds_interrupts):
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE / "deployment.py"), str(tmp_path / "output")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("run ") and "was submitted" in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait(180) == 130, said
    assert living(temporary) == []
