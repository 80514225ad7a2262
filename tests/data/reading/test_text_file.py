"""Text files: lines whatever their ends, encodings, and the true reason where there is none."""

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_split.data.files import read_file
from flower_split.data.reading import text_file
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.reading.text_file import TextFile
from flower_split.errors import DataError


def file(folder: Path, content: bytes, name: str = "silo.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(st.binary(max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=8
    ),
    rest=st.binary(max_size=5),
    piece=st.integers(1, 7),
)
def test_lines_are_those_of_python_whatever_the_pieces(
    tmp_path: Path, parts: list[tuple[bytes, bytes]], rest: bytes, piece: int
) -> None:
    content = b"".join(text + end for text, end in parts) + rest
    opened = TextFile(file(tmp_path, content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "PIECE", piece)
        found = list(opened.lines())
    assert b"".join(line for _, _, line in found) == content
    assert [line for _, _, line in found] == content.splitlines(keepends=True)
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    assert all(opened.read(start, start + len(line)) == line for _, start, line in found)


def test_a_byte_order_mark_before_any_line_is_none_of_the_text(tmp_path: Path) -> None:
    content = '\ufeff{"text": "one"}\n\ufeff{"text": "t\ufeffwo"}\n'.encode()
    rows = read_file(file(tmp_path, content))
    assert [row["text"] for row in rows] == ["one", "t\ufeffwo"]
    rows = read_file(file(tmp_path, "\ufeffone\n\n\ufefftwo".encode(), "silo.txt"))
    assert [row["text"] for row in rows] == ["one", "two"]
    rows = read_file(file(tmp_path, "\ufefftext\none\n\ufefftwo\n".encode(), "silo.csv"))
    assert [row["text"] for row in rows] == ["one", "two"]


@pytest.mark.parametrize("name", ["silo.jsonl", "silo.txt", "silo.csv", "silo.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('text\n{"text": "n\u00e4"}\n'.encode("cp1252"), "set data.encoding to 'cp1252'"),
        ('text\n{"text": "a"}\n'.encode("utf-16"), "looks like utf-16: set data.encoding"),
        ('text\n{"text": "a"}\n'.encode("utf-16-le"), "looks like utf-16: set data.encoding"),
        ('text\n{"text": "a"}\n'.encode("utf-32"), "looks like utf-32: set data.encoding"),
        (b'text\n{"text": "a"}\n\0\0\0\0', "NUL byte"),
        (b'text\n{"text": "a\0b"}\n', "has a NUL byte, as a file has that was not written"),
    ],
)
def test_another_encoding_is_told(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    if name.startswith("silo.json"):
        content = content.replace(b"text\n", b"", 1)
    for rule in ("stop", "skip") if "data.encoding" in said else ("stop",):
        with pytest.raises(DataError, match=said) as caught:
            read_file(file(tmp_path, content, name), bad=BadRows(rule))
        assert f"{tmp_path / name}, line " in str(caught.value)


@pytest.mark.parametrize("name", ["silo.jsonl", "silo.csv"])
def test_an_encoding_that_is_not_the_files_is_told_with_its_line(tmp_path: Path, name: str) -> None:
    content = ("text\n" + "{}\n" * 300_000 + "n\u00e4\n").encode("latin-1")
    with pytest.raises(DataError, match=r"line 300002: not utf-8-sig|line 300002: not UTF-8"):
        read_file(file(tmp_path, content.replace(b"{}", b"{} "), "x.txt"), encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"line 300002: not ascii, which data.encoding says"):
        read_file(file(tmp_path, content, name), encoding="ascii")
    with pytest.raises(DataError, match=r"not utf-16, which data.encoding says it is"):
        read_file(file(tmp_path, b"abc", name), encoding="utf-16")


@pytest.mark.parametrize("cut", [0, 5, 20, -4])
def test_a_damaged_gzip_file_is_told(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(b'{"text": "one"}\n' * 50)
    path = file(tmp_path, packed[:cut] or b"not packed at all", "silo.jsonl.gz")
    with pytest.raises(DataError, match=r"silo\.jsonl\.gz is no whole gzip file"):
        read_file(path)


def test_a_file_that_changes_under_a_run_is_told(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"text": "one"}\n{"text": "two"}\n')
    rows = read_file(path)
    path.write_bytes(b'{"text": "another"}\n{"text": "two"}\n')
    with pytest.raises(DataError, match=r"line 2: is no longer what it was"):
        rows[1]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    path = tmp_path / "loop.jsonl"
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"loop\.jsonl"):
        read_file(path)
