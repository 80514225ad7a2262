"""Tables as text: CSV and TSV, whose first line names the columns. Every value is text."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flower_split.data.examples import Row
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.reading.text_file import IndexedRows, TextFile, check_complete, decoded
from flower_split.errors import DataError


def csv_rows(file: TextFile, bad: BadRows) -> IndexedRows:
    """Cells separated by commas; one with commas, quotes or line ends stands in quotes."""
    return _Table(file, ",").read(bad)


def tsv_rows(file: TextFile, bad: BadRows) -> IndexedRows:
    """The same, separated by tabulators."""
    return _Table(file, "\t").read(bad)


class _Table:
    def __init__(self, file: TextFile, separator: str) -> None:
        self._file = file
        self._separator = separator
        self._lines = 0  # fed to the parser
        self._end = 0
        self._starts: list[int] = []  # of the lines of the record that is being read
        self._damaged: DataError | None = None  # what one of them is

    def read(self, bad: BadRows) -> IndexedRows:
        with _long_cells():
            records = csv.reader(self._fed(), delimiter=self._separator, strict=True)
            header = self._header(records)
            rows = IndexedRows(self._file, lambda data: self._row(data, header))
            while True:
                self._starts.clear()
                self._damaged = None
                first = self._lines + 1
                try:
                    cells = next(records)
                except StopIteration:
                    return rows
                except csv.Error as error:
                    bad.take(self._broken(error, first), self._lines_from(first), len(self._starts))
                    continue
                try:
                    if self._damaged is not None:
                        raise self._damaged
                    if not cells:
                        continue
                    self._check(cells, header, first)
                except DataError as error:
                    bad.take(error, self._lines_from(first))
                else:
                    rows.add(first, self._starts[0], self._end)

    def _fed(self) -> Iterator[str]:
        """The lines for the parser, which asks for as many as a record has."""
        for number, start, line in self._file.lines():
            self._lines, self._end = number, start + len(line)
            self._starts.append(start)
            text = decoded(line, number, self._file.path)
            try:
                check_complete(text, number, self._file.path)
            except DataError as error:
                # Raised here, it would end the file. It is the record's that has the line.
                self._damaged = self._damaged or error
            yield text

    def _header(self, records: Iterator[list[str]]) -> list[str]:
        path = self._file.path
        try:
            header = next((cells for cells in records if cells), None)
        except csv.Error as error:
            raise self._broken(error, 1) from error
        if self._damaged is not None:
            raise self._damaged
        if header is None:
            return []
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            places = [n for n, name in enumerate(header, start=1) if name == twice[0]]
            raise DataError(
                f"{path}, line {self._lines}: two columns have the same name (columns "
                f"{' and '.join(map(str, places))}), of which only one could be read: rename one"
            )
        return header

    def _check(self, cells: Sequence[str], header: Sequence[str], first: int) -> None:
        where = f"{self._file.path}, line {first}"
        if list(cells) == list(header):
            raise DataError(
                f"{where}: names the columns once more, as files do that were joined: remove it"
            )
        if len(cells) != len(header):
            raise DataError(
                f"{where}: has {len(cells)} cells for {len(header)} columns: put a cell with "
                "separators or quotes in it into quotes"
            )

    def _broken(self, error: csv.Error, first: int) -> DataError:
        where = f"{self._file.path}, {self._lines_from(first)}"
        if self._end >= self._file.size and "end of data" in str(error):
            # Everything behind it would be in one cell: no row that could be left out.
            raise DataError(
                f"{self._file.path}, line {first}: a quote is opened there and never closed: "
                "close it, or write a quote inside of a cell twice"
            ) from error
        return DataError(
            f"{where}: quotes that do not match: a cell with quotes in it stands in quotes, and "
            "each of them is written twice"
        )

    def _lines_from(self, first: int) -> str:
        return f"line {first}" if self._lines <= first else f"lines {first} to {self._lines}"

    def _row(self, data: bytes, header: Sequence[str]) -> Row:
        with _long_cells():
            text = io.StringIO(data.decode().removeprefix("\ufeff"), newline="")
            (cells,) = csv.reader(text, delimiter=self._separator, strict=True)
        return dict(zip(header, cells, strict=True))


@contextmanager
def _long_cells() -> Iterator[None]:
    """Take cells of any length: the limit is the process's, and of 131,072 characters."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
