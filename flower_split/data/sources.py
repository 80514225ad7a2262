"""Sources of examples: files, folders, the hub, `datasets` objects, lists of dicts, functions."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flower_split.config.data import DataConfig
from flower_split.data.callables import call_reference, is_reference
from flower_split.data.examples import Examples, Rows
from flower_split.data.files import is_readable, read_file
from flower_split.data.folders import TRAIN, canonical, read_folder
from flower_split.data.reading import arrow
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError, FlowerSplitError
from flower_split.user_folders import expanded

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_examples(
    source: str | Rows,
    *,
    partition_id: int | None = None,
    num_partitions: int | None = None,
    config: DataConfig | None = None,
    split: str = "",
    bad: BadRows | None = None,
) -> tuple[Examples, bool]:
    """The examples of a source, and whether they are already one silo's part of it.

    Args:
        source: A path to a file or a folder, the name of a data set on the hub, a
            `module:function`, a `datasets.Dataset`, or a sequence of mappings.
        partition_id: Which silo asks, from 0; only a `module:function` may look at it. None where
            all the data is the silo's own.
        num_partitions: Number of silos, or None.
        config: How the source is read; None reads it by the defaults.
        split: Of a source with several; empty for that of `config`.
        bad: What becomes of bad rows; None raises the first one's error.

    Raises:
        DataError: the source is missing, empty or broken.
    """
    config, bad = config or DataConfig(), bad or BadRows()
    split = split or config.split
    most = config.max_examples * (num_partitions or 1)
    if not isinstance(source, str):
        return _from_object(source, type(source).__name__, split, most, bad), False
    if not source:
        raise DataError(
            "data.path is empty: set it to a file of examples, such as a .jsonl, .csv, .parquet "
            "or .txt file, to a folder of them, a data set on the hub, or a module:function"
        )
    try:
        path = expanded(source)
    except OSError as exc:
        raise DataError(f"{source!r} names no file: {exc.strerror}") from exc
    if is_reference(source) and not os.path.exists(path):
        found, partitioned = call_reference(
            source, partition_id=partition_id, num_partitions=num_partitions
        )
        if partitioned:
            most = config.max_examples
        return _from_object(found, source, split, most, bad), partitioned
    if arrow.is_saved(path):
        return _present(arrow.read_saved(path, split), str(path)), False
    if os.path.isdir(path):
        return read_folder(path, split, encoding=config.encoding, bad=bad), False
    if _HUB.fullmatch(source) and not os.path.exists(path) and not is_readable(path):
        found = arrow.read_hub(source, split=split, subset=config.subset, revision=config.revision)
        return _present(found, source), False
    found = read_file(path, encoding=config.encoding, bad=bad)
    _check_whole(source, split)
    return found, False


def _check_whole(origin: str, split: str) -> None:
    """Raise `DataError` where a source without splits is asked for another one than `train`."""
    if canonical(split) != TRAIN:
        raise DataError(
            f"{origin}: has no splits, and so no {split!r}, which data.split or data.eval-split "
            "names: expected a folder, a saved data set or one of the hub, or a function that "
            "returns several; for held-out data of its own set data.eval-path"
        )


def _present(found: Examples, origin: str) -> Examples:
    if not found:
        raise DataError(f"{origin}: has no examples")
    return found


def _from_object(found: Any, origin: str, split: str, most: int, bad: BadRows) -> Examples:
    # A `datasets.Dataset` is known by its shape, because the library may not be installed.
    if isinstance(found, Mapping):
        if split not in found:
            names = ", ".join(map(repr, list(found)[:8]))
            raise DataError(
                f"{origin}: expected one data set, not a mapping of several ({names}): name one "
                "in data.split"
            )
        others = tuple(str(name) for name in found if name != split)
        inner = _from_object(found[split], f"{origin}, split {split!r}", TRAIN, most, bad)
        return replace(inner, ignored=others)
    _check_whole(origin, split)
    if _is_stream(found):
        found = _taken(found, origin, most)
    elif hasattr(found, "column_names") and hasattr(found, "__getitem__"):
        return _present(arrow.examples_of(found, origin), origin)
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
        raise DataError(
            f"{origin}: expected a datasets.Dataset or a list of dicts, not "
            f"{type(found).__module__}.{type(found).__name__}"
        )
    if len(found) == 0:
        raise DataError(f"{origin}: has no examples")
    kept = list[int]()
    for number, row in enumerate(found, start=1):
        if isinstance(row, Mapping):
            kept.append(number - 1)
            continue
        error = DataError(f"{origin}, example {number}: expected a dict, not {type(row).__name__}")
        bad.take(error, f"example {number}")
    if not kept:
        raise bad.refuse_all(origin)
    whole = Examples.all_of(found, origin=origin)
    return whole if len(kept) == len(found) else whole.select(kept)


def _is_stream(found: Any) -> bool:
    """Whether it has an end that only reading finds: an `IterableDataset`, or a generator."""
    return isinstance(found, Iterable) and not hasattr(found, "__len__")


def _taken(stream: Any, origin: str, most: int) -> list[Any]:
    """The first `most` rows of a stream."""
    kind = type(stream).__name__
    if not most:
        raise DataError(
            f"{origin}: is a stream ({kind}), of which nobody knows the length: set "
            "data.max-examples to the number of examples that a silo takes of its beginning, or "
            "return a datasets.Dataset, whose rows stay on the disk"
        )
    try:
        return list(itertools.islice(iter(stream), most))
    except FlowerSplitError:
        raise
    except Exception as error:
        raise arrow.failed(f"{origin}: reading the stream ({kind}) failed", error) from error
