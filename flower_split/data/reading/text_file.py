"""A text file: its lines with their places, read a piece at a time, whatever their ends are.

Other encodings than UTF-8 and compressed files are written anew to a temporary file without a name,
so that a row can be read again at its place.
"""

import codecs
import gzip
import os
import re
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from flower_split.data.examples import Row
from flower_split.errors import DataError

PIECE = 1 << 20
"""Bytes that are read at once."""
MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark."""

_END = re.compile(rb"\r\n|\n|\r")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class TextFile:
    """A file of lines in UTF-8.

    Args:
        path: The file; compressed by gzip where its name ends in `.gz`.
        encoding: What its text is encoded in.

    Raises:
        DataError: it cannot be read, is not of that encoding, or not compressed as its name says.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._fd)
            self._rewrite(path, encoding)
            self.size = os.fstat(self._fd).st_size
        except OSError as exc:
            raise DataError(f"{path} cannot be read: {exc.strerror or exc}") from exc

    def _rewrite(self, path: Path, encoding: str) -> None:
        packed = path.suffix.lower() == ".gz"
        codec = codecs.lookup(encoding).name
        if not packed and codec in ("utf-8", "utf-8-sig"):
            return
        with tempfile.TemporaryFile() as written, open(self._fd, "rb", closefd=False) as raw:
            source: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            try:
                _copy(source, written, codec, encoding, path)
            except (gzip.BadGzipFile, zlib.error, EOFError) as exc:
                raise DataError(
                    f"{path} is no whole gzip file ({type(exc).__name__}): compress it again, or "
                    "copy it anew"
                ) from exc
            written.flush()
            self._fd = os.dup(written.fileno())
        weakref.finalize(self, os.close, self._fd)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        return os.pread(self._fd, end - start, start)

    def all(self) -> bytes:
        """The whole of it, without a byte order mark."""
        found = bytearray()
        while piece := self.read(len(found), len(found) + PIECE):
            found += piece
        return bytes(found).removeprefix(MARK)

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Every line: its number from 1, where it begins, and its bytes with its end."""
        start = number = 0
        held = b""
        while True:
            piece = self.read(start + len(held), start + len(held) + PIECE)
            held += piece
            done = 0
            for end in _END.finditer(held):
                if end.end() == len(held) and piece and end[0] == b"\r":
                    break  # the other half of its end may follow
                number += 1
                yield number, start + done, held[done : end.end()]
                done = end.end()
            start, held = start + done, held[done:]
            if not piece:
                break
        if held:
            yield number + 1, start, held


def _copy(source: IO[bytes], target: Any, codec: str, encoding: str, path: Path) -> None:
    """Copy text to UTF-8."""
    if codec in ("utf-8", "utf-8-sig"):
        while piece := source.read(PIECE):
            target.write(piece)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    lines, line = 1, 0
    while True:
        piece = source.read(PIECE)
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeError as exc:
            if isinstance(exc, UnicodeDecodeError):
                line = len(_END.findall(exc.object[: exc.start]))
            raise DataError(
                f"{path}, line {lines + line}: not {encoding}, which data.encoding says it is: "
                f"{_reason(exc)}; set data.encoding to the file's own encoding"
            ) from exc
        lines += text.count("\n")
        target.write(text.encode())
        if not piece:
            return


def _reason(exc: UnicodeError) -> str:
    return exc.reason if isinstance(exc, UnicodeDecodeError) else "it has no valid text"


def decoded(line: bytes, number: int, path: Path) -> str:
    """The text of a line, without a byte order mark before it: files may have been joined.

    Raises:
        DataError: it is not UTF-8, so that the whole file is read wrongly.
    """
    try:
        text = line.removeprefix(MARK).decode()
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{path}, line {number}: not UTF-8: byte {exc.start + 1} of the line is "
            f"0x{line[exc.start]:02x}; {_advice(line)}"
        ) from exc
    if "\0" in text and _looks_wide(line):
        raise DataError(f"{path}, line {number}: has a NUL byte; {_advice(line)}")
    return text


def check_complete(text: str, number: int, path: Path) -> None:
    """Raise `DataError` where a line has bytes of a file that was cut off."""
    if "\0" in text:
        raise DataError(
            f"{path}, line {number}: has a NUL byte, as a file has that was not written to its "
            "end: copy or write it anew"
        )


def _advice(line: bytes) -> str:
    """What encoding the bytes look like."""
    if line.startswith(_UTF_16) or line.startswith(_UTF_32) or _looks_wide(line):
        wide = "utf-32" if line.startswith(_UTF_32) or b"\0\0\0" in line else "utf-16"
        return f"it looks like {wide}: set data.encoding to {wide!r}, or convert the file to UTF-8"
    return (
        "it may be Windows-1252 or Latin-1: set data.encoding to 'cp1252' or 'latin-1', or "
        "convert the file to UTF-8"
    )


def _looks_wide(line: bytes) -> bool:
    nulls = line.count(0)
    return nulls * 3 > len(line) and bool(line.strip(b"\0"))


class IndexedRows:
    """Rows of a text file that are read where they are asked for: memory holds their places only.

    Args:
        file: Has them.
        parse: Makes a row of its bytes; it raised nothing when the rows were found.
    """

    def __init__(self, file: TextFile, parse: Callable[[bytes], Row]) -> None:
        self._file = file
        self._parse = parse
        self._starts, self._ends = array("Q"), array("Q")
        self.numbers = array("Q")
        """The line of every row, from 1."""

    def add(self, number: int, start: int, end: int) -> None:
        """Note the row of the bytes from `start` up to `end`, which begins at line `number`."""
        self.numbers.append(number)
        self._starts.append(start)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Row:
        data = self._file.read(self._starts[index], self._ends[index])
        try:
            return self._parse(data)
        except Exception as exc:
            raise DataError(
                f"{self._file.path}, line {self.numbers[index]}: is no longer what it was when "
                "the silo began to read the file: do not change it during a run"
            ) from exc
