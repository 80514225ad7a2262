"""One checkpoint on disk: a folder with named arrays, plain data, and a manifest over both.

::

    round-00003/
    ├── arrays.safetensors
    ├── state.json
    └── manifest.json

The folder is written under another name and renamed when it is complete and on the disk.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_split.checkpoint.encoding import DTYPES
from flower_split.checkpoint.manifest import digest, parse, render
from flower_split.durable import move_durably, remove_folder, sync_folder
from flower_split.errors import DamagedStateError, StateError
from flower_split.private_files import read_whole, write_new

ARRAYS, STATE, MANIFEST = "arrays.safetensors", "state.json", "manifest.json"

TEMPORARY, TRASH = ".writing-", ".deleting-"
"""Beginnings of the names of folders that are not complete any more, or not yet."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run left after a round."""

    server_round: int
    """0 is the state before the first round."""
    complete: bool = True
    """Whether the round was evaluated too, and not only trained."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By name; numbers and truth values of any shape."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """JSON: dicts with text keys, lists, text, numbers, truth values, None."""
    best_round: int | None = None
    """The round whose checkpoint is kept as the best so far."""

    @property
    def place(self) -> tuple[int, bool]:
        """By which checkpoints are ordered."""
        return self.server_round, self.complete


def folder_name(server_round: int, complete: bool = True) -> str:
    """Name of the folder of a round's checkpoint."""
    return f"round-{server_round:05d}{'' if complete else '-trained'}"


def write_checkpoint(checkpoint: Checkpoint, parent: Path) -> Path:
    """Write `checkpoint` into `parent`; its folder appears whole or not at all.

    One of the same round is replaced.

    Raises:
        OSError: it cannot be written; nothing else was touched.
        ValueError: it holds something that has no place in one.
    """
    name = folder_name(*checkpoint.place)
    files = {ARRAYS: _pack(checkpoint.arrays), STATE: _json(checkpoint.state)}
    manifest = render(
        {
            "round": checkpoint.server_round,
            "complete": checkpoint.complete,
            "best_round": checkpoint.best_round,
            "files": {
                file: {"bytes": len(data), "sha256": digest(data)} for file, data in files.items()
            },
        }
    )
    with tempfile.TemporaryDirectory(
        prefix=f"{TEMPORARY}{name}-", dir=parent, ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch, name)
        made.mkdir(mode=0o700)
        for file, data in {**files, MANIFEST: manifest}.items():
            write_new(made / file, data)
        sync_folder(made)
        if (parent / name).exists():
            remove_folder(parent / name, parent / f"{TRASH}{name}")
        move_durably(made, parent / name)
    return parent / name


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, verified byte by byte.

    Raises:
        DamagedStateError: a file is missing, truncated or altered; says which.
        StateError: it cannot be read, or was written by another version.
    """
    fields = parse(_bytes(folder / MANIFEST), str(folder / MANIFEST))
    data: dict[str, bytes] = {}
    try:
        for name in (ARRAYS, STATE):
            path, wanted = folder / name, fields["files"][name]
            data[name] = _bytes(path)
            if len(data[name]) != wanted["bytes"] or digest(data[name]) != wanted["sha256"]:
                raise DamagedStateError(
                    f"{path} is damaged: {len(data[name])} bytes that are not the "
                    f"{wanted['bytes']} that were written"
                )
        if folder_name(fields["round"], fields["complete"]) != folder.name:
            raise DamagedStateError(f"{folder} holds the checkpoint of round {fields['round']}")
        state, best = json.loads(data[STATE]), fields["best_round"]
        if not isinstance(state, dict) or not isinstance(best, int | None):
            raise TypeError("its state is no table, or its best round no number")
        return Checkpoint(
            server_round=fields["round"],
            complete=fields["complete"],
            arrays=load(data[ARRAYS]),
            state=state,
            best_round=best,
        )
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedStateError(f"{folder} cannot be decoded: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        return read_whole(path)
    except FileNotFoundError as error:
        raise DamagedStateError(f"{path} is missing: the checkpoint is not complete") from error
    except NotADirectoryError as error:
        raise DamagedStateError(f"{path.parent} is not a checkpoint's folder") from error
    except PermissionError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise DamagedStateError(f"{path} cannot be read: {error.strerror}") from error


def _pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            raise ValueError(f"array {name} is {array.dtype}, which a checkpoint cannot hold")
    return save({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()})


def _json(state: Mapping[str, Any]) -> bytes:
    return json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
