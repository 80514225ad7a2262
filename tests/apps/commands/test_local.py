"""`flower-split deployment local`: what it is told wrongly is said before anything starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower_split.apps.cli import cli


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--silo", "a/b"], "--silo a/b: expected NAME or NAME=PATH"),
        (["--silo", "server"], "none of app, ca, server"),
        (["--silo", "a", "--silo", "a"], "--silo a comes twice"),
        (["--silo", "a=/nowhere/a.jsonl"], "there is no /nowhere/a.jsonl"),
        (["--silo", "a=json:loads", "--silo", "b"], "name every silo's as NAME=PATH"),
    ],
)
def test_silos_that_cannot_be(options: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["deployment", "local", *options])
    assert done.exit_code == (1 if "there is no" in said else 2)
    assert said in done.stderr


@pytest.mark.medium
def test_settings_are_checked_before_anything_starts(tmp_path: Path) -> None:
    """And what the app lacks is no problem."""
    app = Path(__file__).parents[3] / "examples/real_model"
    settings = 'model.name="flower_split.quickstart:base" split.bottom-layers=99 checkpoint.keep=1'
    arguments = ["deployment", "local", str(app), "--output-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, "-c", settings])
    assert done.exit_code == 1
    assert "problem" in done.stdout and "99" in done.stdout
    assert "checkpoint.keep" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.medium
def test_a_trunk_service_is_not_given_this_machines_certificates(tmp_path: Path) -> None:
    app = Path(__file__).parents[3] / "examples/quickstart"
    arguments = ["deployment", "local", str(app), "--output-dir", str(tmp_path / "out")]
    settings = 'trunk.service="127.0.0.1:9" trunk.service-timeout=1.0 split.bottom-layers=99'
    done = CliRunner().invoke(cli, [*arguments, "-c", settings])
    assert done.exit_code == 1
    assert "99" in done.stdout and "tls" not in done.stdout + done.stderr
