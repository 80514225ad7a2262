"""The command line: what is printed where, and an exit status that is true."""

import json
import logging
from importlib import metadata
from pathlib import Path

import pytest
from federation import write_app
from typer.testing import CliRunner

from flower_split.apps import simulate as simulating
from flower_split.apps.cli import cli
from flower_split.apps.commands.console import NOISY
from flower_split.apps.flower.flwr_command import FlwrError
from flower_split.reporting import RoundResult, RunResult, write_result

ROOT = Path(__file__).parents[3]


def flower_split(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, [str(word) for word in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_new_says_where_and_what_next(tmp_path: Path) -> None:
    status, out, _ = flower_split("new", tmp_path / "app")
    assert status == 0
    assert f"flower-split check {tmp_path / 'app'}" in out.replace("\n", "")
    status, out, err = flower_split("new", tmp_path / "app")
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and "is not empty" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "x", "--merge"], "--merge wants a value, MODEL, and is followed by nothing."),
        (["export", "x", "--merge", "--out", "y"], "--merge wants a value, MODEL, and is followed"),
        (["silo", "serve", "x", "--models-gib"], "--models-gib wants a value"),
        (["check", "x", "-c"], "-c wants a value"),
        (["export", "x"], "Missing option '--out'"),
    ],
)
def test_an_option_without_its_value_says_what_it_wants(words: list[str], said: str) -> None:
    status, out, err = flower_split(*words)
    assert (status, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())


@pytest.mark.medium
def test_check_of_an_app_shows_examples_and_fails_where_a_run_would(tmp_path, run_config) -> None:
    app = write_app(tmp_path / "app", run_config)
    status, out, _ = flower_split("check", app)
    assert status == 0
    assert out.count("with a loss") == 3
    status, out, _ = flower_split("check", app, "-c", "lora.r=0", "--json")
    answer = json.loads(out)
    assert status == 1 and answer["ok"] is False
    assert [one["topic"] for one in answer["findings"] if one["kind"] == "problem"] == ["settings"]


@pytest.mark.medium
def test_check_of_a_model() -> None:
    status, out, _ = flower_split("check", "flower_split.quickstart:base", "--json")
    assert status == 0 and json.loads(out)["ok"] is True
    status, out, err = flower_split("check", "/nowhere/at/all")
    assert (status, out) == (1, "") and err.startswith("error: ") and "/nowhere/at/all" in err
    status, out, err = flower_split("check", "/nowhere/at/all", "--json")
    assert status == 1 and json.loads(out)["ok"] is False and err == ""


@pytest.fixture
def simulated(monkeypatch):
    """What `simulate` is called with; it leaves a result, or fails as it is told to."""
    calls = []

    def simulate(app, *, output_dir, show, **named):
        calls.append({"app": app, "output_dir": output_dir, **named})
        show("INFO", "round 1 of 1: train-loss 4.077; silos 0; 1.0 s")
        show("WARNING", "silo 2: no reply that counts")
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "run.log").touch()
        if failing := [one for one in named["run_config"] if "fail" in one]:
            raise FlwrError(f"the run ended as finished:failed: {failing[0]}")
        if output_dir is not None:
            one = RoundResult(server_round=0, evaluate={"0": {"eval-loss": 3.0}})
            write_result(RunResult(rounds=(one,)), output_dir / "result.json")

    monkeypatch.setattr(simulating, "simulate", simulate)
    return calls


@pytest.fixture
def app(tmp_path, monkeypatch, run_config):
    monkeypatch.chdir(tmp_path)
    return write_app(tmp_path / "app", run_config)


def test_the_version_is_told_with_those_that_results_depend_on() -> None:
    status, out, err = flower_split("--version")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"flower-split {metadata.version('flower-split')}"
    assert f"peft {metadata.version('peft')}" in out


def test_without_ray_a_run_ends_before_its_checks_and_says_what_to_install(
    app, simulated, monkeypatch
) -> None:
    monkeypatch.setattr(simulating, "find_spec", lambda name: None)
    status, out, err = flower_split("run", app)
    assert (status, out, simulated) == (1, "", [])
    assert "pip install 'flower-split[simulation]'" in err and not Path("outputs").exists()


def test_run_leaves_something_and_says_where(app, simulated) -> None:
    status, out, err = flower_split("run", app, "--no-check")
    assert status == 0
    folder = Path("outputs/federation-test")
    assert simulated[0]["output_dir"] == folder and (folder / "result.json").is_file()
    assert "round 1 of 1: train-loss 4.077" in out
    assert f"left in {folder}: result.json" in out
    assert "warning: silo 2" in out and err == ""


def test_run_answers_a_program_with_json_alone(app, simulated) -> None:
    status, out, err = flower_split("run", app, "--no-check", "--json", "--output-dir", "there")
    answer = json.loads(out)
    assert status == 0 and answer["ok"] and answer["left"] == ["result.json", "run.log"]
    assert answer["silos"] == {"0": {"0": 3.0}}
    assert "round 1 of 1" in err


def test_a_run_that_fails_says_so_once_and_last(app, simulated) -> None:
    status, out, err = flower_split("run", app, "--no-check", "-c", 'sample-prompt="fail"')
    assert status == 1
    assert err.count("finished:failed") == 1 and err.startswith("error: ")
    assert err.rstrip().endswith("the whole log is in outputs/federation-test/run.log")
    assert "Traceback" not in out + err


@pytest.mark.medium
def test_run_finds_out_beforehand_what_would_fail(app, simulated) -> None:
    status, out, _ = flower_split("run", app, "--silos", "2", "-c", "strategy.min-nodes=3")
    assert status == 1 and simulated == []
    assert out.startswith("problem  strategy: a round starts with 3 silos at least")
    assert len(out.splitlines()) == 1


@pytest.mark.medium
@pytest.mark.parametrize("options", [[], ["--output-dir", "there"]])
def test_a_run_can_be_resumed_where_its_output_goes(app, simulated, options) -> None:
    """Though the app itself names no folder."""
    again = 'resume=true output-dir=""'
    status, out, err = flower_split("run", app, "--silos", "3", *options, "-c", again)
    assert (status, err) == (0, ""), out
    assert simulated[0]["output_dir"] == Path(*options[1:] or ["outputs", "federation-test"])


def test_relative_paths_mean_those_of_this_folder(app, simulated, tiny) -> None:
    Path("mine.jsonl").write_text('{"text": "the sum"}\n')
    status, _, _ = flower_split("run", app, "--no-check", "-c", 'data.path="mine.jsonl"')
    assert status == 0
    assert simulated[0]["run_config"][-1] == f'data.path="{Path("mine.jsonl").resolve()}"'


def test_an_app_that_has_no_output_dir_is_told(tmp_path, simulated) -> None:
    text = (ROOT / "examples/quickstart/pyproject.toml").read_text()
    app = tmp_path / "app"
    app.mkdir()
    kept = [line for line in text.splitlines() if not line.startswith("output-dir")]
    (app / "pyproject.toml").write_text("\n".join(kept).replace(', "/README.md"', ""))
    status, out, _ = flower_split("run", app, "--no-check")
    assert status == 0 and "nothing of the run was kept" in out
    status, _, err = flower_split("run", app, "--no-check", "--output-dir", tmp_path / "x")
    assert status == 1 and "no key output-dir" in err


def test_a_bug_of_ours_is_not_hidden(app, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(simulating, "simulate", broken)
    with pytest.raises(KeyError):
        flower_split("run", app, "--no-check")


def test_a_program_is_answered_where_the_run_fails_too(app, simulated) -> None:
    given = ["--no-check", "--json", "-c", 'sample-prompt="fail"']
    status, out, err = flower_split("run", app, *given)
    answer = json.loads(out)
    assert status == 1 and answer["ok"] is False and "finished:failed" in answer["error"]
    assert "error" not in err


def test_debug_shows_the_traceback(app, simulated) -> None:
    given = ["--no-check", "--debug", "-c", 'sample-prompt="fail"']
    status, _, err = flower_split("run", app, *given)
    assert status == 1 and "Traceback" in err and "finished:failed" in err
    _, _, err = flower_split("run", app, *[word for word in given if word != "--debug"])
    assert "Traceback" not in err


@pytest.mark.medium
def test_a_command_leaves_the_loggers_of_its_process_as_they_were(app, simulated) -> None:
    before = [logging.getLogger(name).level for name in NOISY]
    assert flower_split("run", app)[0] == 0
    assert [logging.getLogger(name).level for name in NOISY] == before


def test_an_interrupted_command_says_what_is_so(app, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulating, "simulate", interrupted)
    status, _, err = flower_split("run", app, "--no-check")
    assert (status, err) == (130, "interrupted; everything was stopped\n")
