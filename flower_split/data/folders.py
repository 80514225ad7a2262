"""A folder of files: one after the other, or those of a split where their names tell splits apart.

Names of files and folders tell a split as they do on the hub: `train.jsonl`, `data-test.csv`,
`validation/part-1.parquet`. A file whose path tells none is of the split `train`.
"""

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flower_split.data.examples import Examples, Row
from flower_split.data.files import is_readable, read_file
from flower_split.data.reading.arrow import is_saved
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError

TRAIN = "train"
_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words of a path and the split that they name."""


def read_folder(
    folder: Path, split: str, *, encoding: str = "utf-8", bad: BadRows | None = None
) -> Examples:
    """The examples of all files of a folder that are of the split, in the order of their paths.

    Hidden files are not read, and neither are files of other kinds, whose names `ignored` tells.

    Args:
        folder: With files, and folders of files.
        split: Which; one that its files do not tell apart is refused, unless it is `train`.
        encoding: Of text files.
        bad: What becomes of bad rows.

    Raises:
        DataError: no file is of the split, or one cannot be read.
    """
    bad = bad or BadRows()
    files, others = list[Path](), list[str]()
    for path in sorted(_files(folder)):
        (files.append(path) if is_readable(path) else others.append(_short(path, folder)))
    if not files:
        raise DataError(
            f"{folder} has no file that can be read: expected files such as .jsonl, .csv, "
            ".parquet or .txt, or a folder that save_to_disk of datasets wrote"
        )
    wanted = [path for path in files if split_of(path, folder) == canonical(split)]
    if not wanted:
        there = sorted({split_of(path, folder) for path in files})
        raise DataError(
            f"{folder} has no file of the split {split!r}; its names tell "
            f"{', '.join(map(repr, there))}. Name one in data.split, or in data.eval-split what is "
            "held out"
        )
    ignored = [*others, *(_short(path, folder) for path in files if path not in wanted)]
    parts = list[Examples]()
    for path in wanted:
        bad.file = _short(path, folder)
        parts.append(read_file(path, encoding=encoding, bad=bad))
    bad.file = ""
    return _joined(parts, folder, ignored)


def canonical(split: str) -> str:
    """The name that stands for a split's name and its like: `dev` is `validation`."""
    return _WORDS.get(split.lower(), split)


def split_of(path: Path, folder: Path) -> str:
    """The split that a file's name, or else that of a folder around it, tells."""
    parts = path.relative_to(folder).parts
    for part in reversed(parts):
        for word in re.findall(r"[a-z]+", part.lower().partition(".")[0]):
            if word in _WORDS:
                return _WORDS[word]
    return TRAIN


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if is_saved(path):
            raise DataError(
                f"{folder} holds {path.name}, a data set that save_to_disk wrote: name that folder"
            )
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _short(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _joined(parts: Sequence[Examples], folder: Path, ignored: Sequence[str]) -> Examples:
    rows = _JoinedRows(parts)
    return Examples(
        origin=str(folder),
        rows=rows,
        picked=range(len(rows)),
        place=rows.place,
        plain_text=all(part.plain_text for part in parts),
        untyped=any(part.untyped for part in parts),
        sparse=any(part.sparse for part in parts),
        ignored=tuple(ignored),
    )


class _JoinedRows:
    """The rows of several sources, one after the other."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Row:
        part, inner = self._find(index)
        return part[inner]

    def place(self, index: int) -> str:
        """Where a row is: its file and its line."""
        part, inner = self._find(index)
        return part.where(inner)

    def _find(self, index: int) -> tuple[Examples, int]:
        number = bisect.bisect_right(self._ends, index)
        if number == len(self._parts):
            raise IndexError(index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)
