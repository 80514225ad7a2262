"""JSON: bad lines stop or are counted, and what is no JSON Lines is told."""

import json
from pathlib import Path

import pytest

from flower_split.data.files import read_file
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError

LINES = """{"text": "one"}
{"text": "two"
null

{"text": "three", "text": "four"}
[1]
{"text": "five"}
{"te"""


def file(folder: Path, content: str, name: str = "silo.jsonl") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    bad = BadRows("skip")
    rows = read_file(file(tmp_path, LINES), bad=bad)
    assert [row["text"] for row in rows] == ["one", "five"]
    assert rows.where(1).endswith("silo.jsonl, line 7")
    assert bad.count == 5
    assert bad.places == ["line 2", "line 3", "line 5", "line 6", "line 8"]
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_file(file(tmp_path, LINES))


def test_the_number_of_bad_lines_that_are_named_is_bounded(tmp_path: Path) -> None:
    bad = BadRows("skip")
    read_file(file(tmp_path, '{"text": "a"}\n' + "x\n" * 100), bad=bad)
    assert (bad.count, len(bad.places)) == (100, 5)


def test_a_file_of_bad_lines_alone_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all of its 2 rows are bad.*line 1: not valid JSON"):
        read_file(file(tmp_path, "x\ny\n"), bad=BadRows("skip"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "text": "b"}', "line 1: not usable JSON: an object has a field twice"),
        ('{\n  "text": "a"\n}\n', "line 1: JSON that goes on over several lines.*ending .json"),
        ('[\n  {"text": "a"}\n]\n', "line 1: JSON that goes on over several lines.*ending .json"),
        ('[{"text": "a"}]', "line 1: .*not an array of objects: give the file the ending .json"),
    ],
)
def test_what_is_no_json_lines_is_told(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_file(file(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"},\n {"text": }]', r"line 2: not valid JSON: .* at column 11"),
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "2 arrays of objects: expected one array"),
        ('{"ask": {"0": "a", "1": "b"}, "text": {"0": "c", "1": "d"}}', "one object of 2 columns"),
        ('{"ask": ["a", "b"], "text": ["c", "d"]}', "expected an array of rows"),
        ('{"Ann": {"text": "a"}, "Bob": {"text": "b", "n": 1}}', "or of rows by name"),
        ('[{"text": "a"}, 3]', "entry 2: expected a JSON object, .*not a number"),
        ("[]", "is empty: it has 2 bytes"),
        ('"a"', "line 1: expected a JSON object, .*not a string"),
        ("[" * 200_000, "line 1: not usable JSON: RecursionError"),
        ("", "is empty"),
    ],
)
def test_what_a_json_file_cannot_be_is_told(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_file(file(tmp_path, content, "silo.json"))


def test_entries_of_a_json_file_are_counted_and_lines_of_one_too(tmp_path: Path) -> None:
    bad = BadRows("skip")
    rows = read_file(file(tmp_path, '[{"text": "a"}, 3, {"text": "b"}]', "silo.json"), bad=bad)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert (rows.where(1).endswith("entry 3"), bad.places) == (True, ["entry 2"])
    bad = BadRows("skip")
    rows = read_file(file(tmp_path, LINES, "silo.json"), bad=bad)
    assert ([row["text"] for row in rows], bad.count) == (["one", "five"], 5)


def test_one_object_is_one_example(tmp_path: Path) -> None:
    assert list(read_file(file(tmp_path, '{"text": "a"}', "silo.json"))) == [{"text": "a"}]
    row = {"messages": "m", "text": "a", "ids": [1, 2]}
    assert list(read_file(file(tmp_path, json.dumps(row, indent=2), "silo.json"))) == [row]


def test_an_error_does_not_quote_the_data(tmp_path: Path) -> None:
    for content in (
        '{"the patient": {"a": 1}, "b": {"a": 1, "c": 2}}',
        '[{"text": "the patient" broken}]',
        '{"the patient": 1, "the patient": 2}',
    ):
        for name in ("silo.json", "silo.jsonl"):
            if name == "silo.jsonl" and content.startswith('{"the patient": {'):
                continue  # one example, with fields of these names
            with pytest.raises(DataError) as caught:
                read_file(file(tmp_path, content, name))
            assert "patient" not in str(caught.value)
