"""Files of examples: JSON Lines, and plain text whose paragraphs are the examples."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flower_split.data.examples import Examples, Row
from flower_split.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Numbered = Iterator[tuple[int, Row]]


def read_file(path: Path) -> Examples:
    """The examples of a `.jsonl` or `.txt` file, each numbered by the line where it starts.

    Raises:
        DataError: the file cannot be read, is of another kind, broken or empty.
    """
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise DataError(f"{path} is a directory; expected a file ({', '.join(READERS)})")
    if not path.exists():
        raise DataError(f"there is no file {_named(path)}")
    if reader is None:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'!r}; expected one of {', '.join(READERS)}"
        )
    try:
        content = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    found = list(reader(content, path))
    if not found:
        raise DataError(f"{path} is empty: it has {len(content)} bytes and no example")
    numbers, rows = zip(*found, strict=True)
    return Examples(
        origin=str(path), rows=rows, picked=range(len(rows)), unit="line", numbers=numbers
    )


def json_lines(content: bytes, path: Path) -> Numbered:
    """One JSON object a line; blank lines are skipped."""
    for number, line in _lines(content, path):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as exc:
            raise DataError(
                f"{path}, line {number}: not valid JSON: {exc.msg} at column {exc.colno}"
            ) from exc
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{path}, line {number}: not usable JSON: {exc}") from exc
        if not isinstance(row, dict):
            raise DataError(
                f'{path}, line {number}: expected a JSON object, {{"field": …}}, not '
                f"{_JSON_KINDS.get(type(row), 'a number')}"
            )
        yield number, row


def paragraphs(content: bytes, path: Path) -> Numbered:
    """Paragraphs, which blank lines separate, as the field `text`; line breaks inside stay."""
    start, held = 0, list[str]()
    for number, line in _lines(content, path):
        if line.strip():
            start = start if held else number
            held.append(line.rstrip())
        elif held:
            yield start, {"text": "\n".join(held)}
            held = []
    if held:
        yield start, {"text": "\n".join(held)}


def _lines(content: bytes, path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as exc:
            raise DataError(
                f"{path}, line {number}: not UTF-8: byte {exc.start + 1} of the line is "
                f"0x{line[exc.start]:02x}; convert the file to UTF-8"
            ) from exc


def _named(path: Path) -> str:
    return str(path) if path.is_absolute() else f"{path} (looked for {path.absolute()})"


_JSON_KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}

READERS: MappingProxyType[str, Callable[[bytes, Path], Numbered]] = MappingProxyType(
    {".jsonl": json_lines, ".ndjson": json_lines, ".txt": paragraphs}
)
"""Reader by the file name's ending."""
