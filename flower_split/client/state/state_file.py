"""`StateFile`: one session's state on the silo's disk, whole or not at all.

It is a safetensors file `<round>-<tag>.safetensors`. Its metadata are the format, the tag and the
round, the scaling of the silo's adapter, and a digest over all that the file says. Moments have
their own names, personal tensors the prefix `kept:`. The digest finds damage, not an attacker: a
folder that others can write to is refused before (`private_files.check_private`).
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.errors import StateError
from flower_split.lowrank import Scaling, scaling_fields, scaling_from_fields
from flower_split.private_files import opened, write_whole

FORMAT = "flower-split session state 1"

TEMPORARY = "incoming.tmp"
"""Name of a file that is being written, beside its place."""

_NAME = re.compile(r"(?P<round>\d{8})-(?P<tag>[0-9a-f]{64})\.safetensors")
_PERSONAL = "kept:"

_EARLIER_NAME = re.compile(r"round-(?P<round>\d{8})\.safetensors")
_EARLIER_FORMAT = "flower-split-kept-1"


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """The place of one session's state, which is in its name."""

    path: Path
    server_round: int
    tag: str
    """Of the session: 64 hexadecimal digits."""

    @classmethod
    def at(cls, folder: Path, server_round: int, tag: str) -> Self:
        """The file in a silo's `folder`, which need not exist."""
        path = folder / f"{server_round:08d}-{tag}.safetensors"
        return cls(path=path, server_round=server_round, tag=tag)

    @classmethod
    def named(cls, path: Path) -> Self | None:
        """The file at `path`; None where the name is not one of ours."""
        if found := _NAME.fullmatch(path.name):
            return cls(path=path, server_round=int(found["round"]), tag=found["tag"])
        if found := _EARLIER_NAME.fullmatch(path.name):
            number = int(found["round"])
            return cls(path=path, server_round=number, tag=round_tag(number))
        return None

    @classmethod
    def all_in(cls, folder: Path) -> list[Self]:
        """The files in a silo's `folder`, latest round first."""
        try:
            paths = sorted(folder.iterdir(), key=lambda path: path.name)
        except OSError:
            return []
        found = [file for path in paths if (file := cls.named(path)) is not None]
        return sorted(found, key=lambda file: file.server_round)[::-1]

    def write(self, state: SessionState) -> None:
        """Write the file next to its place, force it to the disk, and rename it.

        Args:
            state: With the scaling of the silo's adapter, where it has one.

        Raises:
            OSError: the disk is full, the folder is read-only, …; what was there is still there.
        """
        scaling = None if state.scaling is None else scaling_fields(state.scaling)
        facts = {
            "format": FORMAT,
            "tag": self.tag,
            "round": str(self.server_round),
            "scaling": json.dumps(scaling),
        }
        personal = {_PERSONAL + name: tensor for name, tensor in state.personal.tensors.items()}
        # Contiguous copies of their own, because safetensors refuses tensors that share memory.
        tensors = {n: t.contiguous().clone() for n, t in {**state.moments, **personal}.items()}
        data = save(tensors, metadata={**facts, "digest": _digest(facts, tensors)})
        write_whole(self.path, data, temporary=TEMPORARY)

    def read(self, *, most_bytes: float = math.inf) -> SessionState:
        """The state in the file, which is not trusted.

        Args:
            most_bytes: Size that the file may have.

        Raises:
            StateError: it is no such file, larger than it may be, or damaged.
            OSError: it cannot be read.
        """
        facts, tensors = self._content(most_bytes)
        if _EARLIER_NAME.fullmatch(self.path.name):
            return _earlier_state(facts, tensors)
        if facts.get("format") != FORMAT or facts.get("tag") != self.tag:
            raise StateError("it was written by another version, or for another session")
        scaling = _scaling(facts)
        personal = {
            n.removeprefix(_PERSONAL): t for n, t in tensors.items() if n.startswith(_PERSONAL)
        }
        return SessionState(
            moments={n: t for n, t in tensors.items() if not n.startswith(_PERSONAL)},
            personal=PersonalTensors(
                tensors=personal, scale=1.0 if scaling is None else scaling.factor
            ),
            scaling=scaling,
        )

    def _content(self, most_bytes: float) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Metadata and tensors, with their digest checked."""
        try:
            with opened(self.path) as own:
                size = os.fstat(own.fileno()).st_size
        except OSError as error:
            raise StateError(error.strerror or "it cannot be read") from error
        if size > most_bytes:
            raise StateError(f"it has {size} bytes, and a state of this model at most {most_bytes}")
        try:
            # By its name again: nobody else can exchange it in a folder that was checked.
            with safe_open(self.path, framework="pt") as file:
                facts = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
        except (SafetensorError, ValueError, KeyError, UnicodeDecodeError) as error:
            raise StateError("it is no safetensors file, or a part of one") from error
        if facts.pop("digest", "") != _digest(facts, tensors):
            raise StateError("its digest is not that of its content: the file is damaged")
        return facts, tensors


def round_tag(server_round: int) -> str:
    """The tag of a state that has no other half at a trunk: one a round, SHA-256, hexadecimal."""
    return hashlib.sha256(f"round {server_round}".encode()).hexdigest()


def _earlier_state(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> SessionState:
    """What `AdapterExchange` wrote before it shared a store with `SplitSession`."""
    try:
        if facts["format"] != _EARLIER_FORMAT:
            raise StateError("it was written by another version")
        scale = float(facts["scale"])
    except (KeyError, ValueError) as error:
        raise StateError("it does not say how its tensors are scaled") from error
    return SessionState(personal=PersonalTensors(tensors=tensors, scale=scale))


def _scaling(facts: Mapping[str, str]) -> Scaling | None:
    try:
        told = json.loads(facts["scaling"])
        return None if told is None else scaling_from_fields(told)
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise StateError("it does not say of which rank and alpha it is") from error


def _digest(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything that a file says, hexadecimal."""
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for piece in _pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        tensor = tensors[name]
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
