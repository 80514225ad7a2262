"""Files of examples: what is read, and where it is broken."""

from pathlib import Path

import pytest

from flower_split.data.files import read_file
from flower_split.errors import DataError


def file(folder: Path, content: str | bytes, name: str = "silo.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_are_read_in_order_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = file(tmp_path, '\ufeff{"text": "one"}\r\n\n{"text": "two\\u2028", "n": 1}')
    examples = read_file(path)
    assert [examples[i] for i in range(2)] == [{"text": "one"}, {"text": "two\u2028", "n": 1}]
    assert examples.where(1) == f"{path}, line 3"


def test_paragraphs_are_examples(tmp_path: Path) -> None:
    path = file(tmp_path, "\n\nfirst line \nsecond line\n \t\n\nanother\r\n", "silo.txt")
    examples = read_file(path)
    assert [examples[i]["text"] for i in range(len(examples))] == [
        "first line\nsecond line",
        "another",
    ]
    assert [examples.where(i) for i in range(2)] == [f"{path}, line 3", f"{path}, line 7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": }\n', "line 2: not valid JSON: .* at column 10"),
        ('{"text": "a"}\n\n[1]\n', "line 3: expected a JSON object, .*not an array"),
        ('"a"', "line 1: expected a JSON object, .*not a string"),
        ("null", "line 1: .*not null"),
        ("true", "line 1: .*not a boolean"),
        ("3.5", "line 1: .*not a number"),
        ("[" * 200_000, "line 1: not usable JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}', "line 2: not UTF-8: byte 11 of the line"),
        ("", "is empty: it has 0 bytes"),
        ("\n \n", "is empty: it has 3 bytes"),
    ],
)
def test_broken_content_names_file_and_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_file(file(tmp_path, content))
    assert str(tmp_path / "silo.jsonl") in str(caught.value)


def test_an_error_does_not_quote_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(file(tmp_path, '{"text": "the patient" broken}'))
    assert "patient" not in str(caught.value)


def test_text_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"silo\.txt, line 2: not UTF-8"):
        read_file(file(tmp_path, "fine\nna\u00efve".encode("latin-1"), "silo.txt"))


def test_absent_files_directories_and_other_endings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"there is no file .*absent\.jsonl"):
        read_file(tmp_path / "absent.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_file(Path("absent.jsonl"))
    assert str(tmp_path / "absent.jsonl") in str(caught.value)
    with pytest.raises(DataError, match="is a directory"):
        read_file(tmp_path)
    with pytest.raises(DataError, match=r"ends in '\.xml'; expected one of \.jsonl"):
        read_file(file(tmp_path, "<a/>", "silo.xml"))
