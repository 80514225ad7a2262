"""What the library `datasets` reads: Parquet, Arrow, its own folders, and data sets of the hub.

It maps its tables into memory, so that rows are read from the disk. Parquet files and the hub's are
written to its cache first, `HF_DATASETS_CACHE`.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_split.data.examples import Examples
from flower_split.errors import DataError

logger = logging.getLogger(__name__)

READERS = ("parquet", "arrow")
"""Endings of the files that are read here."""

_SAVED = ("state.json", "dataset_dict.json")
"""What one of is in every folder that `save_to_disk` made."""


def read_table(path: Path, ending: str) -> Examples:
    """The rows of a Parquet or an Arrow file.

    Raises:
        DataError: it is none, or is broken; or `datasets` is not installed.
    """
    datasets = library(str(path))
    try:
        found = (_parquet if ending == "parquet" else _arrow)(datasets, path)
    except DataError:
        raise
    except Exception as error:
        raise failed(f"{path} is no whole {ending.capitalize()} file", error) from error
    return examples_of(found, str(path))


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of a data set made this folder."""
    return any(os.path.isfile(path / name) for name in _SAVED)


def read_saved(path: Path, split: str) -> Examples:
    """A data set that `save_to_disk` wrote, or the split of one that has several.

    Raises:
        DataError: it is broken, or has no such split; or `datasets` is not installed.
    """
    datasets = library(str(path))
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise failed(f"{path} is no whole folder of a saved data set", error) from error
    return chosen(found, str(path), split)


def read_hub(name: str, *, split: str, subset: str, revision: str) -> Examples:
    """A split of a data set on the hub, which is downloaded once.

    Raises:
        DataError: there is no such data set, subset or split, or it cannot be fetched; or
            `datasets` is not installed.
    """
    datasets = library(name)
    try:
        found = datasets.load_dataset(name, subset or None, revision=revision or None)
    except Exception as error:
        what = f"the data set {name!r} cannot be loaded"
        if "config name" in str(error).lower() or "BuilderConfig" in str(error):
            what += f" with data.subset {subset!r}, of which it may have others"
        raise failed(f"{what}, and there is no such file or folder here", error) from error
    return chosen(found, name, split)


def chosen(found: Any, origin: str, split: str) -> Examples:
    """The examples of a data set, of its split where it has several."""
    ignored: tuple[str, ...] = ()
    if isinstance(found, Mapping):
        if split not in found:
            raise DataError(
                f"{origin}: has no split {split!r}; it has {', '.join(map(repr, found))}. Name one "
                "in data.split, or in data.eval-split what is held out"
            )
        ignored = tuple(str(name) for name in found if name != split)
        found, origin = found[split], f"{origin}, split {split!r}"
    return examples_of(found, origin, ignored)


def examples_of(found: Any, origin: str, ignored: tuple[str, ...] = ()) -> Examples:
    """The rows of a `datasets.Dataset`."""
    names = list(found.column_names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{origin}: two columns have the name {twice!r}: rename one")
    return Examples(
        origin=origin,
        rows=found,
        picked=range(len(found)),
        unit="row",
        sparse=True,
        ignored=ignored,
    )


def library(what: str) -> Any:
    """The package `datasets`.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError as exc:
        raise DataError(
            f"{what} is read by the library datasets ({exc}): pip install 'flower-split[data]'"
        ) from exc
    return datasets


def failed(what: str, error: Exception) -> DataError:
    """The error of a failure inside the library, whose text may quote the data."""
    logger.error("%s: %s: %s", what, type(error).__name__, error)
    return DataError(f"{what} ({type(error).__name__}); the silo's own log has the rest")


def _parquet(datasets: Any, path: Path) -> Any:
    from pyarrow import parquet

    read: Any = parquet.read_schema
    names = read(path).names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two columns have the name {twice!r}: rename one")
    return datasets.Dataset.from_parquet(str(path))


def _arrow(datasets: Any, path: Path) -> Any:
    """Of a stream, as `datasets` writes it, or of a file with its index at the end (Feather)."""
    import pyarrow

    arrow: Any = pyarrow
    with path.open("rb") as file:
        indexed = file.read(6) == b"ARROW1"
    if not indexed:
        return datasets.Dataset.from_file(str(path))
    return datasets.Dataset(arrow.ipc.open_file(arrow.memory_map(str(path))).read_all())
