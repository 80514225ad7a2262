"""The catalogue of faults: every row has tests, which are named after it and in its table."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = range(1, 37)
NIGHTLY = {36}
"""Rows whose test takes a day, and is no test of pytest's."""
_ROW = re.compile(r"test_row_(\d\d)_\w+")
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def functions(path: Path) -> set[str]:
    """The names of a file's tests."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = (one.name for one in found if isinstance(one, ast.FunctionDef))
    return {name for name in names if name.startswith("test_")}


@pytest.fixture(scope="module")
def table() -> dict[int, set[tuple[str, str]]]:
    """File and name of the tests by row, as docs/faults.md has them."""
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| *(\d+) *\|(.*)$", text, flags=re.MULTILINE)
    return {int(number): set(_NAMED.findall(rest)) for number, rest in lines}


@pytest.fixture(scope="module")
def written() -> dict[int, set[tuple[str, str]]]:
    """File and name of the tests that are named after a row, by row."""
    found: dict[int, set[tuple[str, str]]] = {row: set() for row in ROWS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in functions(path):
            if row := _ROW.fullmatch(name):
                found[int(row[1])].add((path.relative_to(ROOT).as_posix(), name))
    return found


def test_the_table_has_every_row_once(table: dict[int, set[tuple[str, str]]]) -> None:
    assert list(table) == list(ROWS)


@pytest.mark.medium
@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_tests_and_the_table_names_them(
    row: int,
    table: dict[int, set[tuple[str, str]]],
    written: dict[int, set[tuple[str, str]]],
) -> None:
    assert table[row] or row in NIGHTLY
    assert written[row] <= table[row], "a test that is named after the row is not in its table"
    absent = {
        (file, name)
        for file, name in table[row]
        if not (ROOT / file).is_file() or name not in functions(ROOT / file)
    }
    assert absent == set()
