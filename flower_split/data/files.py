"""Files of examples: JSON Lines, and plain text whose paragraphs are the examples.

Other packages add readers by the entry-point group `flower_split.readers`::

    [project.entry-points."flower_split.readers"]
    csv = "my_package.tables:read_csv"

The name is the file name's ending. The reader is called as `read_csv(content, path)`, with the
file's bytes without a byte order mark, and yields for every example the number of the line where it
starts, and its fields by name.
"""

import json
import logging
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flower_split.data.examples import Examples, Row
from flower_split.errors import ConfigError, DataError, FlowerSplitError
from flower_split.plugins import PluginTable

logger = logging.getLogger(__name__)

GROUP = "flower_split.readers"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Numbered = Iterator[tuple[int, Row]]
Reader = Callable[[bytes, Path], Numbered]


def read_file(path: Path) -> Examples:
    """The examples of a file that one of `READERS` or a plug-in reads, numbered by their lines.

    Raises:
        DataError: the file cannot be read, is of another kind, broken or empty; or the plug-in is.
    """
    endings = ", ".join(f".{ending}" for ending in _TABLE)
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"there is no file {_named(path)}") from None
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    if stat.S_ISDIR(kind):
        raise DataError(f"{path} is a directory; expected a file ({endings})")
    try:
        reader = _TABLE[path.suffix.lower().removeprefix(".")]
    except KeyError:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'!r}; expected one of {endings}"
        ) from None
    except ConfigError as exc:
        raise DataError(f"{path}: {exc}") from exc
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

READERS: Mapping[str, Reader] = MappingProxyType(
    {"jsonl": json_lines, "ndjson": json_lines, "txt": paragraphs}
)
"""flower_split's own readers by the file name's ending; those of plug-ins come after them."""


class _Readers(PluginTable[Reader]):
    """The table of readers: `READERS` and, after them, those that other packages registered."""

    def __init__(self) -> None:
        super().__init__(GROUP, READERS, key="file ending", noun="reader")

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
