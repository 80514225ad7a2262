"""`module:function`: data that the user's own code loads."""

import importlib
import inspect
import logging
import re
from typing import Any

from flower_split.errors import DataError, FlowerSplitError

logger = logging.getLogger(__name__)

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(source: str) -> bool:
    """Whether `source` has the form `module:function`."""
    return _REFERENCE.fullmatch(source) is not None


def call_reference(
    source: str, *, partition_id: int | None, num_partitions: int | None
) -> tuple[Any, bool]:
    """What the function returns, and whether it returned a single silo's part.

    It is called with those of the keyword arguments `partition_id` and `num_partitions` that its
    signature names; a function that takes `partition_id` does its own partitioning. Where the
    silo has no partition id, the function's own defaults hold.

    A failure inside it is logged and leaves here without its text, which may quote the data.

    Raises:
        DataError: there is no such function, it takes other arguments, or it failed.
    """
    module_name, _, name = source.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise DataError(f"{source}: module {module_name!r} cannot be imported: {exc}") from exc
    except Exception as exc:
        raise _failed(f"{source}: importing {module_name!r}", exc) from exc
    function = getattr(module, name, None)
    if not callable(function):
        kind = "no" if function is None else "something that is not a function under"
        raise DataError(f"{source}: module {module_name!r} has {kind} {name!r}")
    offered = {"partition_id": partition_id, "num_partitions": num_partitions}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        raise DataError(f"{source}: expected a Python function with a known signature") from exc
    arguments = {
        key: value
        for key, value in offered.items()
        if key in signature.parameters and value is not None
    }
    try:
        signature.bind(**arguments)
    except TypeError as exc:
        raise DataError(
            f"{source}{signature} must be callable with nothing but the keyword arguments "
            f"partition_id and num_partitions, here {_listed(arguments)}: {exc}"
        ) from exc
    try:
        return function(**arguments), "partition_id" in arguments
    except FlowerSplitError:
        raise
    except Exception as exc:
        raise _failed(source, exc) from exc


def _failed(what: str, error: Exception) -> DataError:
    logger.exception("%s failed", what)
    return DataError(f"{what} failed with {type(error).__name__}; the silo's own log has the rest")


def _listed(arguments: dict[str, int]) -> str:
    if not arguments:
        return "none of them"
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
