"""`result.json` holds everything, is written whole, and refuses what it cannot read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from flower_split.errors import DataError
from flower_split.reporting import RoundResult, RunResult, read_result, write_result


def test_what_was_written_is_read_again(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "result.json"
    write_result(result, path)
    assert read_result(path) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_json_is_strict_where_a_metric_is_not(tmp_path: Path) -> None:
    broken = RoundResult(server_round=1, evaluate={"0": {"eval-loss": math.nan, "n": [math.inf]}})
    write_result(RunResult(rounds=(broken,)), tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["rounds"][0]["evaluate"]["0"] == {"eval-loss": None, "n": [None]}


def test_a_failed_write_leaves_the_old_file(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(result, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_result(replace(result, config={"x": object()}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a readable result"),
        ("[]", "of format None, expected 1"),
        ('{"format": 2}', "of format 2, expected 1"),
        ('{"format": 1}', "lacks what a result must have"),
        ('{"format": 1, "rounds": [{"x": 1}], "alone": [], "samples": {}}', "lacks what"),
    ],
)
def test_what_is_not_a_result_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_result(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable result"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": {"1": ["text"]}},
        {"seconds": 10**400},
        {"wire_bytes": {"0": 3}},
        {"privacy": [[]]},
        {"rounds": [{"server_round": True}]},
        {"rounds": [{"server_round": 1, "failures": {"0": {}}}]},
        {"rounds": [[]]},
    ],
)
def test_a_result_with_fields_of_another_kind_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    data = {"format": 1, "rounds": [], "alone": [], "samples": {}}
    path.write_text(json.dumps({**data, **changes}))
    with pytest.raises(DataError, match="lacks what a result must have"):
        read_result(path)


def test_a_result_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("[" * 10**5)
    with pytest.raises(DataError, match="not a readable result"):
        read_result(path)
