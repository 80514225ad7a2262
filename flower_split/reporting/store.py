"""`result.json`: a run's result on disk, written whole or not at all."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_split.errors import DataError
from flower_split.private_files import make_folder, write_whole
from flower_split.reporting.result import RoundResult, RunResult
from flower_split.reporting.result_kinds import RESULT_KINDS, ROUND_KINDS, check_fields
from flower_split.text_tables import read_json

FORMAT = 1
"""Value of the key `format`; a change that old readers would misread raises it."""
_MOST_BYTES = 256 << 20


def write_result(result: RunResult, path: Path) -> None:
    """Write `result` to `path`, in a folder that is made if missing.

    The file appears in one piece, so a reader never sees half of it. A number that JSON cannot
    hold (infinite or not a number) becomes null.
    """
    make_folder(path.parent)
    text = json.dumps(_plain({"format": FORMAT, **_fields(result)}), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, readable by this user; the file appears whole or not at all."""
    write_whole(path, text.encode())


def read_result(path: Path) -> RunResult:
    """The result that `write_result` wrote.

    Raises:
        DataError: the file is missing, not a result, or of another format.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        data = read_json(content)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable result: {error}") from error
    found = data.pop("format", None) if isinstance(data, dict) else None
    if found != FORMAT:
        raise DataError(f"{path} is a result of format {found!r}, expected {FORMAT}")
    try:
        check_fields(data, RESULT_KINDS)
        for key in ("rounds", "alone"):
            data[key] = tuple(_round(one) for one in data[key])
        data["privacy"] = tuple(data.get("privacy", ()))
        data["samples"] = {int(number): text for number, text in data["samples"].items()}
        return RunResult(**data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} lacks what a result must have: {error}") from error


def _round(fields: dict[str, Any]) -> RoundResult:
    check_fields(fields, ROUND_KINDS)
    return RoundResult(**fields)


def _fields(record: Any) -> dict[str, Any]:
    return {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}


def _plain(value: object) -> object:
    if isinstance(value, (RunResult, RoundResult)):
        return _plain(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
