"""Sources of examples: files, `datasets` objects, lists of dicts, and `module:function`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flower_split.data.callables import call_reference, is_reference
from flower_split.data.examples import Examples, Rows
from flower_split.data.files import read_file
from flower_split.errors import DataError
from flower_split.user_folders import expanded


def load_examples(
    source: str | Rows, *, partition_id: int | None = None, num_partitions: int | None = None
) -> tuple[Examples, bool]:
    """The examples of a source, and whether they are already one silo's part of it.

    Args:
        source: A path to a file that `read_file` reads, a `module:function`, a
            `datasets.Dataset`, or a sequence of mappings.
        partition_id: Which silo asks, from 0; only a `module:function` may look at it. None where
            all the data is the silo's own.
        num_partitions: Number of silos, or None.

    Raises:
        DataError: the source is missing, empty or broken.
    """
    if not isinstance(source, str):
        return _from_object(source, type(source).__name__), False
    if not source:
        raise DataError(
            "data.path is empty: set it to a file of examples, such as a .jsonl or .txt file, or "
            "to a module:function"
        )
    try:
        path = expanded(source)
    except OSError as exc:
        raise DataError(f"{source!r} names no file: {exc.strerror}") from exc
    if is_reference(source) and not os.path.exists(path):
        found, partitioned = call_reference(
            source, partition_id=partition_id, num_partitions=num_partitions
        )
        return _from_object(found, source), partitioned
    return read_file(path), False


def _from_object(found: Any, origin: str) -> Examples:
    # A `datasets.Dataset` is known by its shape, because the library may not be installed.
    dataset = hasattr(found, "column_names") and hasattr(found, "__getitem__")
    if isinstance(found, Mapping):
        names = ", ".join(map(repr, list(found)[:8]))
        raise DataError(f"{origin}: expected one data set, not a mapping of several ({names})")
    if not dataset and (not isinstance(found, Sequence) or isinstance(found, (str, bytes))):
        raise DataError(
            f"{origin}: expected a datasets.Dataset or a list of dicts, not "
            f"{type(found).__module__}.{type(found).__name__}"
        )
    if len(found) == 0:
        raise DataError(f"{origin}: has no examples")
    if not dataset:
        for number, row in enumerate(found, start=1):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{origin}, example {number}: expected a dict, not {type(row).__name__}"
                )
    return Examples.all_of(found, origin=origin)
