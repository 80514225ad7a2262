"""Examples: rows of named fields that know where they came from."""

import difflib
import itertools
import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flower_split.errors import DataError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

NAMED = 20
"""Fields of an example that errors name at most."""
BATCH = 1000
"""Rows that are read at once where all of them are."""


class Rows(Protocol):
    """What holds the rows: a list, a file's index, or a `datasets.Dataset`."""

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
    place: Callable[[int], str] | None = None
    """Where a row of several sources is, by its index; None for those of one source."""
    plain_text: bool = False
    """Whether the rows are the texts of plain text files."""
    untyped: bool = False
    """Whether every value is text, as in a CSV file, where a number is one only by its looks."""
    sparse: bool = False
    """Whether rows have every column of the table, null where they had none, as Arrow's do."""
    ignored: tuple[str, ...] = ()
    """Names of the files of a folder, or of the splits of a source, that were not read."""

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
        return replace(self, picked=[self.picked[index] for index in indices])

    def batches(self) -> Iterator[tuple[range, list[Row]]]:
        """All examples, some at a time: their indices and rows."""
        several: Any = getattr(self.rows, "__getitems__", None)
        for start in range(0, len(self), BATCH):
            indices = range(start, min(start + BATCH, len(self)))
            wanted = [self.picked[index] for index in indices]
            if several is not None:
                yield indices, several(wanted)
            else:
                yield indices, [self.rows[index] for index in wanted]

    def where(self, index: int) -> str:
        """The place of an example in its source, for messages."""
        row = self.picked[index]
        if self.place is not None:
            return self.place(row)
        return f"{self.origin}, {self.unit} {self._number(row)}"

    def mark(self, index: int) -> str:
        """The same in short, without the name of a single source."""
        row = self.picked[index]
        return self.place(row) if self.place is not None else f"{self.unit} {self._number(row)}"

    def _number(self, row: int) -> int:
        return row + 1 if self.numbers is None else self.numbers[row]

    def value(self, index: int, field: str, row: Row | None = None) -> Any:
        """The value of a field.

        Args:
            index: Of the example.
            field: Its name; another Unicode form of it (NFC, NFD) is taken for the same.
            row: The example, where it was read already.

        Raises:
            DataError: the example has no such field, or it is null.
        """
        row = self[index] if row is None else row
        name = find_field(row, field)
        if name is None:
            raise DataError(
                f"{self.where(index)}: no field {field!r}; {self.columns(row, field)}{_advice(row)}"
            )
        if row[name] is None:
            raise DataError(f"{self.where(index)}: field {field!r} is null")
        return row[name]

    def columns(self, row: Row, wanted: str) -> str:
        """What fields a row has, in place of `wanted`.

        A table's first line may be data: it is told to the log alone.
        """
        if not self.untyped:
            more = ", …" if len(row) > NAMED else ""
            named = ", ".join(repr(name) for name in itertools.islice(row, NAMED))
            return f"the fields there are {named or 'none'}{more}"
        logger.warning("%s: the columns are %s", self.origin, ", ".join(map(repr, row)))
        near = difflib.get_close_matches(wanted, [str(name) for name in row], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return (
            f"the first line of the table must name its columns, and has {len(row)}, which the "
            f"silo's own log lists{hint}"
        )

    def text(self, index: int, field: str, row: Row | None = None) -> str:
        """The text of a field; arguments as for `value`.

        Raises:
            DataError: there is none, or it is not text, blank, or not valid Unicode.
        """
        text = self.value(index, field, row)
        if not isinstance(text, str):
            raise DataError(
                f"{self.where(index)}: field {field!r} must be text, not {type(text).__name__}"
            )
        if not text.strip():
            raise DataError(f"{self.where(index)}: field {field!r} is empty text")
        return self.valid(index, field, text)

    def valid(self, index: int, field: str, text: str) -> str:
        """`text` of a field, or `DataError` where it is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{self.where(index)}: field {field!r} is not valid Unicode: it has half of a "
                f"surrogate pair at character {exc.start}"
            ) from exc
        return text


def find_field(row: Row, field: str) -> str | None:
    """The name under which a row has a field, in whatever Unicode form; None where it has not."""
    if field in row:
        return field
    if field.isascii():
        return None
    wanted = unicodedata.normalize("NFC", field)
    return next((name for name in row if unicodedata.normalize("NFC", name) == wanted), None)


def proposed_keys(row: Row) -> dict[str, str]:
    """The keys by which a row with fields of common names is read as it is meant; none if unsure.

    Args:
        row: Of data without the field that `data.text` is by default.
    """
    names = {str(name) for name in row}
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            return {"data.messages": name}
    if names >= {"chosen", "rejected"}:
        return {}
    for prompt, answer in (("prompt", "completion"), ("question", "answer"), ("input", "output")):
        if names >= {prompt, answer} and "instruction" not in names:
            return {"data.prompt": prompt, "data.text": answer}
    if names >= {"instruction", "output"}:
        more = "{input}\n" if "input" in names else ""
        template = f"### Instruction:\n{{instruction}}\n{more}### Response:\n"
        return {"data.template": template, "data.text": "output"}
    return {}


def _advice(row: Row) -> str:
    """What a row without the wanted field looks like."""
    names = {str(name) for name in row}
    keys = proposed_keys(row)
    if name := keys.get("data.messages"):
        return f". {name!r} looks like a chat: set data.messages to {name!r}"
    if names >= {"chosen", "rejected"}:
        return (
            ". The rows look like preference pairs, for which the ready-made ClientApp has no "
            "loss: train on them in a ClientApp of your own (docs/data.md), or set data.text to "
            "'chosen' to learn the better answers alone"
        )
    if prompt := keys.get("data.prompt"):
        return f". Set data.prompt to {prompt!r} and data.text to {keys['data.text']!r}"
    if "data.template" in keys:
        return (
            ". For instructions set data.template to the prompt, such as '{instruction}', and "
            "data.text to 'output'"
        )
    if len(names) == 1 and (found := next((c for c in ";\t|" if c in next(iter(names))), "")):
        return f". The cells seem to be separated by {found!r}: separate them by commas"
    return ""
