"""JSON: one object a line, or a whole file of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flower_split.data.examples import Row, Rows
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.reading.text_file import MARK, IndexedRows, TextFile, check_complete, decoded
from flower_split.errors import DataError

_KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def json_lines(file: TextFile, bad: BadRows) -> IndexedRows:
    """One JSON object a line; blank lines are skipped."""
    rows = IndexedRows(file, _parsed)
    for number, start, line in file.lines():
        text = decoded(line, number, file.path)
        if not text.strip():
            continue
        try:
            check_complete(text, number, file.path)
            _object(text, f"{file.path}, line {number}", first=not rows and not bad.count)
        except DataError as error:
            bad.take(error, f"line {number}")
        else:
            rows.add(number, start, start + len(line))
    return rows


def json_file(file: TextFile, bad: BadRows) -> tuple[Rows, Sequence[int], str]:
    """The rows of a `.json` file, their numbers, and what these count."""
    first = next((line for _, _, line in file.lines() if line.removeprefix(MARK).strip()), b"")
    try:
        by_lines = isinstance(json.loads(first.removeprefix(MARK)), dict)
    except (ValueError, RecursionError):
        by_lines = False
    if by_lines and len(first) < file.size - len(MARK):
        rows = json_lines(file, bad)
        if len(rows) + bad.count > 1:
            return rows, rows.numbers, "line"
    return json_document(file, bad)


def json_document(file: TextFile, bad: BadRows) -> tuple[Rows, Sequence[int], str]:
    """The objects of a `.json` file, and their lines: an array of them, one after the other, or
    the one array that is in an object."""
    content = file.all()
    text = decoded_whole(content, file.path)
    found = [*_values(text, file.path)]
    if len(found) == 1:
        number, value = found[0]
        if isinstance(value, dict):
            value = _inner(value, file.path) or [value]
        if isinstance(value, list):
            return _numbered(file, bad, [*enumerate(value, start=1)], "entry")
        found = [(number, value)]
    return _numbered(file, bad, found, "line")


def decoded_whole(content: bytes, path: Path) -> str:
    """The text of a file; errors as of `decoded`."""
    try:
        text = content.decode()
    except UnicodeDecodeError as exc:
        number = content[: exc.start].count(b"\n") + 1
        begin = content.rfind(b"\n", 0, exc.start) + 1
        return decoded(content[begin : exc.start + 4], number, path)
    if "\0" in text:
        check_complete(decoded(content, 1, path), text[: text.index("\0")].count("\n") + 1, path)
    return text.removeprefix(MARK.decode())


def _numbered(
    file: TextFile, bad: BadRows, found: list[tuple[int, Any]], unit: str
) -> tuple[list[Row], list[int], str]:
    rows, numbers = list[Row](), list[int]()
    for number, value in found:
        try:
            _check_object(value, f"{file.path}, {unit} {number}")
        except DataError as error:
            bad.take(error, f"{unit} {number}")
        else:
            rows.append(value)
            numbers.append(number)
    return rows, numbers, unit


def _inner(value: dict[str, Any], path: Path) -> list[Any] | None:
    """The one array of objects in an object, which may stand beside a version and the like."""
    held = [v for v in value.values() if isinstance(v, list | dict) and v]
    arrays = [v for v in held if isinstance(v, list) and _all_objects(v)]
    if len(arrays) > 1:
        raise DataError(
            f"{path} has one object with {len(arrays)} arrays of objects: expected one array of "
            "objects. Write each to a file of its own"
        )
    columns = len({len(v) for v in held}) == 1 or all(isinstance(v, dict) for v in held)
    if len(held) == len(value) > 1 and columns and not arrays:
        raise DataError(
            f"{path} has one object of {len(value)} columns, or of rows by name: expected an array "
            "of rows. Write it so, as pandas does with to_json(orient='records')"
        )
    return arrays[0] if arrays and len(held) == 1 else None


def _all_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _values(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Every JSON value of the text, one after the other, and the line where it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    place = line = 0
    while True:
        begin = place
        while begin < len(text) and (text[begin].isspace() or text[begin] == "\ufeff"):
            begin += 1
        line += text.count("\n", place, begin)
        if begin == len(text):
            return
        where = f"{path}, line {line + 1}"
        try:
            value, end = decoder.raw_decode(text, begin)
        except json.JSONDecodeError as exc:
            broken = text.count("\n", 0, exc.pos) + 1
            column = exc.pos - text.rfind("\n", 0, exc.pos)
            raise DataError(
                f"{path}, line {broken}: not valid JSON: {exc.msg} at column {column}"
            ) from exc
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{where}: not usable JSON: {_said(exc)}") from exc
        yield line + 1, value
        line += text.count("\n", begin, end)
        place = end


class _TwiceError(ValueError):
    """An object has a field twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError("an object has a field twice, of which only one could be read")
    return found


def _object(text: str, where: str, *, first: bool) -> None:
    """Raise `DataError` unless a line is an object."""
    try:
        value: Any = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as exc:
        if first and text.strip() in ("{", "["):
            raise DataError(
                f"{where}: JSON that goes on over several lines, and a .jsonl file has an object "
                "in each line: give the file the ending .json"
            ) from exc
        raise DataError(f"{where}: not valid JSON: {exc.msg} at column {exc.colno}") from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where}: not usable JSON: {_said(exc)}") from exc
    if first and isinstance(value, list) and value and _all_objects(value):
        raise DataError(
            f'{where}: expected a JSON object, {{"field": …}}, not an array of objects: give the '
            "file the ending .json"
        )
    _check_object(value, where)


def _check_object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "a number")
        raise DataError(f'{where}: expected a JSON object, {{"field": …}}, not {kind}')


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, _TwiceError) else type(exc).__name__


def _parsed(line: bytes) -> Row:
    row: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return row
