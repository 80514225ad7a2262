"""Files of examples, each read by its ending.

Other packages add readers by the entry-point group `flower_split.readers`::

    [project.entry-points."flower_split.readers"]
    xml = "my_package.documents:read_xml"

The name is the file name's ending. The reader is called as `read_xml(content, path)`, with the
file's bytes without a byte order mark, and yields for every example the number of the line where it
starts, and its fields by name.
"""

import logging
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flower_split.data.examples import Examples, Row, Rows
from flower_split.data.reading import arrow
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.reading.json_files import json_file, json_lines
from flower_split.data.reading.tables import csv_rows, tsv_rows
from flower_split.data.reading.text_file import MARK, TextFile, check_complete, decoded
from flower_split.errors import ConfigError, DataError, FlowerSplitError
from flower_split.plugins import PluginTable

logger = logging.getLogger(__name__)

GROUP = "flower_split.readers"

Numbered = Iterator[tuple[int, Row]]
Reader = Callable[[bytes, Path], Numbered]


def read_file(path: Path, *, encoding: str = "utf-8", bad: BadRows | None = None) -> Examples:
    """The examples of a file, numbered by their lines, or their rows where it has no lines.

    Args:
        path: Of the file.
        encoding: Of its text, where it is a text file.
        bad: What becomes of bad rows; None raises the first one's error.

    Raises:
        DataError: the file cannot be read, is of another kind, broken or empty; or the plug-in is.
    """
    bad = bad or BadRows()
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"there is no file {_named(path)}") from None
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    if stat.S_ISDIR(kind):
        raise DataError(f"{path} is a directory; expected a file ({_endings()})")
    ending = ending_of(path)
    before = bad.count
    if ending in (*_INDEXED, *arrow.READERS):
        _reader(path, ending)  # of which a plug-in must not take the name
    if ending in arrow.READERS:
        found = arrow.read_table(path, ending)
    elif ending in _INDEXED:
        found = _INDEXED[ending](TextFile(path, encoding), bad)
    else:
        found = _read(path, _reader(path, ending), encoding)
    if not found and bad.count > before:
        raise bad.refuse_all(str(path))
    if not found:
        raise DataError(f"{path} is empty: it has {path.stat().st_size} bytes and no example")
    return found


def is_readable(path: Path) -> bool:
    """Whether a file has an ending that is read."""
    return ending_of(path) in (*arrow.READERS, *_INDEXED, *_TABLE)


def ending_of(path: Path) -> str:
    """The ending of a file's name, in small letters and without the dot; `jsonl.gz` is one."""
    ending = path.suffix.lower().removeprefix(".")
    if ending == "gz":
        return f"{Path(path.stem).suffix.lower().removeprefix('.')}.gz".removeprefix(".")
    return ending


def _reader(path: Path, ending: str) -> Reader:
    try:
        return _TABLE[ending]
    except KeyError:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'!r}; expected one of {_endings()}"
        ) from None
    except ConfigError as exc:
        raise DataError(f"{path}: {exc}") from exc


def _endings() -> str:
    return ", ".join(f".{ending}" for ending in (*_INDEXED, *_TABLE, *arrow.READERS))


def _read(path: Path, reader: Reader, encoding: str) -> Examples:
    if reader in READERS.values():
        content = TextFile(path, encoding).all()
    else:
        try:
            content = path.read_bytes().removeprefix(MARK)
        except OSError as exc:
            raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    found = list(reader(content, path))
    numbers, rows = zip(*found, strict=True) if found else ((), ())
    return Examples(
        origin=str(path),
        rows=rows,
        picked=range(len(rows)),
        unit="line",
        numbers=numbers,
        plain_text=reader is paragraphs,
    )


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
    plain = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, line in enumerate(plain.split(b"\n"), start=1):
        text = decoded(line, number, path)
        check_complete(text, number, path)
        yield number, text


def _named(path: Path) -> str:
    return str(path) if path.is_absolute() else f"{path} (looked for {path.absolute()})"


def _indexed(
    read: Callable[[TextFile, BadRows], tuple[Rows, Sequence[int], str]], *, untyped: bool = False
) -> Callable[[TextFile, BadRows], Examples]:
    def examples(file: TextFile, bad: BadRows) -> Examples:
        rows, numbers, unit = read(file, bad)
        return Examples(
            origin=str(file.path),
            rows=rows,
            picked=range(len(rows)),
            unit=unit,
            numbers=numbers,
            untyped=untyped,
        )

    return examples


def _by_line(read: Callable[[TextFile, BadRows], Any]) -> Any:
    def numbered(file: TextFile, bad: BadRows) -> tuple[Rows, Sequence[int], str]:
        rows = read(file, bad)
        return rows, rows.numbers, "line"

    return numbered


_LINES = _indexed(_by_line(json_lines))
_INDEXED: Mapping[str, Callable[[TextFile, BadRows], Examples]] = MappingProxyType(
    {
        "jsonl": _LINES,
        "ndjson": _LINES,
        "jsonl.gz": _LINES,
        "ndjson.gz": _LINES,
        "json": _indexed(json_file),
        "json.gz": _indexed(json_file),
        "csv": _indexed(_by_line(csv_rows), untyped=True),
        "csv.gz": _indexed(_by_line(csv_rows), untyped=True),
        "tsv": _indexed(_by_line(tsv_rows), untyped=True),
        "tsv.gz": _indexed(_by_line(tsv_rows), untyped=True),
    }
)
"""Readers of files whose rows stay on the disk, by ending."""

READERS: Mapping[str, Reader] = MappingProxyType({"txt": paragraphs, "txt.gz": paragraphs})
"""flower_split's own readers of whole text files by the file name's ending; those of plug-ins come
after them."""


class _Readers(PluginTable[Reader]):
    """The table of readers: `READERS` and, after them, those that other packages registered."""

    def __init__(self) -> None:
        taken = dict.fromkeys((*_INDEXED, *arrow.READERS), paragraphs)
        super().__init__(GROUP, {**READERS, **taken}, key="file ending", noun="reader")

    def checked(self, name: str, loaded: Any, packages: str) -> Reader:
        """The plug-in's reader, whose rows and errors are checked as they come."""
        if not callable(loaded):
            raise ConfigError(
                f"file ending {name!r} of {packages} must be read by a function, not by a "
                f"{type(loaded).__name__}"
            )

        def read(content: bytes, path: Path) -> Numbered:
            whose = f"{path}: the reader of {packages}"
            try:
                for entry in loaded(content, path):
                    if not _is_numbered_row(entry):
                        raise DataError(
                            f"{whose} must yield tuples of a line's number and a mapping of "
                            f"fields, and yielded a {type(entry).__name__}"
                        )
                    yield entry
            except FlowerSplitError:
                raise
            except Exception as error:
                # Its text may quote the data.
                logger.exception("%s failed", whose)
                raise DataError(
                    f"{whose} failed with {type(error).__name__}; the silo's own log has the rest"
                ) from error

        return read


def _is_numbered_row(entry: object) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[0], int)
        and isinstance(entry[1], Mapping)
    )


_TABLE = _Readers()
