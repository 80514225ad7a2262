"""Examples: rows of named fields that know where they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flower_split.errors import DataError

Row = Mapping[str, Any]


class Rows(Protocol):
    """What holds the rows: a list, or a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A selection of the rows of one source, in the source's order or another.

    Errors name the source and the row's number in it, however often rows were selected.
    """

    origin: str
    """The source: a file's path, or what else the rows came from."""
    rows: Rows
    """All rows of the source."""
    picked: Sequence[int]
    """Indices into `rows` of the selected ones."""
    unit: str = "example"
    """What `numbers` counts."""
    numbers: Sequence[int] | None = None
    """Number of every row in the source; None counts from 1."""

    @classmethod
    def all_of(cls, rows: Rows, *, origin: str) -> "Examples":
        """All of `rows`, numbered from 1."""
        return cls(origin=origin, rows=rows, picked=range(len(rows)))

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: int) -> Row:
        return self.rows[self.picked[index]]

    def select(self, indices: Sequence[int]) -> "Examples":
        """Those of the examples that are at `indices`, in the order of `indices`."""
        return Examples(
            origin=self.origin,
            rows=self.rows,
            picked=[self.picked[index] for index in indices],
            unit=self.unit,
            numbers=self.numbers,
        )

    def where(self, index: int) -> str:
        """The place of an example in its source, for messages."""
        row = self.picked[index]
        number = row + 1 if self.numbers is None else self.numbers[row]
        return f"{self.origin}, {self.unit} {number}"

    def value(self, index: int, field: str) -> Any:
        """The value of a field.

        Raises:
            DataError: the example has no such field, or it is null.
        """
        row = self[index]
        if field not in row:
            there = ", ".join(map(repr, row)) or "none"
            raise DataError(
                f"{self.where(index)}: no field {field!r}; the fields there are {there}"
            )
        if row[field] is None:
            raise DataError(f"{self.where(index)}: field {field!r} is null")
        return row[field]

    def text(self, index: int, field: str) -> str:
        """The text of a field.

        Raises:
            DataError: there is none, or it is not text, blank, or not valid Unicode.
        """
        text = self.value(index, field)
        if not isinstance(text, str):
            raise DataError(
                f"{self.where(index)}: field {field!r} must be text, not {type(text).__name__}"
            )
        if not text.strip():
            raise DataError(f"{self.where(index)}: field {field!r} is empty text")
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{self.where(index)}: field {field!r} is not valid Unicode: it has half of a "
                f"surrogate pair at character {exc.start}"
            ) from exc
        return text
