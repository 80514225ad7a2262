"""The report of a run that lies in a folder, by the command and from its result so far."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.run_report import result_of
from flower_split.errors import DataError
from flower_split.reporting import RoundResult, RunResult, write_result

RESULT = RunResult(
    rounds=[RoundResult(server_round=0, evaluate={"north": {"eval-loss": 2.0}})], state="running"
)


def report(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["report", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_page_is_written_beside_the_result(tmp_path: Path) -> None:
    write_result(RESULT, tmp_path / "result.json")
    assert report(tmp_path)[:2] == (0, f"the report is in {tmp_path / 'report.html'}\n")
    page = (tmp_path / "report.html").read_text()
    assert "has not ended, or its process was killed" in page and "north" in page
    write_result(replace(RESULT, state="completed"), tmp_path / "result.json")
    assert report(tmp_path / "result.json", "--out", tmp_path / "new/other.html")[0] == 0
    assert "has not ended" not in (tmp_path / "new/other.html").read_text()
    assert (tmp_path / "new/other.html").stat().st_mode & 0o077 == 0


def test_markdown_is_printed_or_written(tmp_path: Path) -> None:
    write_result(RESULT, tmp_path / "result.json")
    status, out, _ = report(tmp_path, "--markdown")
    assert status == 0 and out.startswith("# a model, 1 silo, 0 rounds")
    assert report(tmp_path, "--markdown", "--out", tmp_path / "report.md")[0] == 0
    assert (tmp_path / "report.md").read_text() == out.removesuffix("\n")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no {tmp_path / 'result.json'}: name the output folder"):
        result_of(tmp_path)
    status, _, err = report(tmp_path)
    assert status == 1 and err.startswith("error: there is no ")
    (tmp_path / "result.json").write_text("{")
    status, _, err = report(tmp_path)
    assert status == 1 and "not a readable result" in err


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_result(RESULT, tmp_path / "result.json")
    (tmp_path / "file").write_text("")
    status, _, err = report(tmp_path, "--out", tmp_path / "file/report.html")
    assert status == 1 and err.startswith("error: the report cannot be written to ")
