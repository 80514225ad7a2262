"""Docstrings are read by parsing: sorted, distinct, and nothing runs."""

from pathlib import Path

from flower_split.quickstart.docstrings import collect, docstrings_of, python_files

SOURCE = '''"""The module."""

raise SystemExit("a parsed file must not run")


class Thing:
    """The class."""

    def method(self):
        """The method.

        Text:
            Indented.
        """

    async def silent(self):
        pass


def function():
    """The class."""
'''


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_docstrings_come_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", SOURCE)
    assert docstrings_of(path) == [
        "The module.",
        "The class.",
        "The method.\n\nText:\n    Indented.",
        "The class.",
    ]


def test_files_that_cannot_be_parsed_have_none(tmp_path: Path) -> None:
    broken = write(tmp_path, "broken.py", 'def f(:\n    """text"""\n')
    binary = tmp_path / "binary.py"
    binary.write_bytes(b'"""\xff\xfe"""\x00')
    assert docstrings_of(broken) == []
    assert docstrings_of(binary) == []


def test_files_are_sorted_and_skipped_by_name(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/tests/x.py", "tests/y.py", "notes.txt"):
        write(tmp_path, name, "")
    found = python_files(tmp_path, skip=frozenset({"tests"}))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/z.py", "b.py"]
    assert list(python_files(tmp_path / "b.py")) == [tmp_path / "b.py"]


def test_collect_takes_each_long_docstring_once(tmp_path: Path) -> None:
    first = write(tmp_path, "a.py", SOURCE)
    second = write(tmp_path, "b.py", '"""The second module."""\n')
    assert collect([first, second], min_chars=12) == [
        "The method.\n\nText:\n    Indented.",
        "The second module.",
    ]
