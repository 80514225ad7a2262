"""Kept state: tensors of a silo's own that it carries from round to round, in files.

A file is a generation, made by the training of one round. It appears whole or not at all, and one
that is damaged is passed over for the one before it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flower_split.client.state.folder import make_private
from flower_split.client.state.sealed_tensors import read_sealed, write_sealed
from flower_split.errors import StateError

logger = logging.getLogger(__name__)

KEEP = 3
"""Generations that are kept."""

_FORMAT = "flower-split-kept-1"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one round's training left."""

    server_round: int
    scale: float
    """Factor of the product of the LoRA tensors."""
    tensors: dict[str, Tensor]
    """Float32."""


class KeptState:
    """The generations of one silo in one run.

    Args:
        folder: For this run and silo alone; made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self, before: int) -> Generation | None:
        """The newest sound generation of a round before `before`; None when there is none."""
        files = sorted(self.folder.glob("round-*.safetensors"), reverse=True)
        for path in files:
            number = int(path.stem.removeprefix("round-"))
            if number < before and (found := _read(path, number)) is not None:
                return found
        return None

    def save(self, generation: Generation) -> None:
        """Write `generation`, and delete all but the last three.

        Raises:
            StateError: the folder cannot be written to.
        """
        path = self.folder / f"round-{generation.server_round:08d}.safetensors"
        facts = {"format": _FORMAT, "scale": repr(generation.scale)}
        try:
            make_private(self.folder)
            write_sealed(path, facts, generation.tensors)
            kept = [p for p in sorted(self.folder.glob("round-*.safetensors")) if p <= path]
            for old in kept[:-KEEP]:
                old.unlink()
        except OSError as error:
            raise StateError(
                f"the silo's own adapter tensors cannot be kept in {self.folder}: {error}. Give "
                "the node a writable folder by state-dir in its node config"
            ) from error


def _read(path: Path, server_round: int) -> Generation | None:
    try:
        facts, tensors = read_sealed(path)
        if facts.get("format") != _FORMAT:
            raise StateError("it is of another format")
        if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
            raise StateError("it has tensors that are not float32")
        scale = float(facts["scale"])
    except (OSError, StateError, ValueError, KeyError) as error:
        logger.warning("%s is damaged and is passed over: %s", path, error)
        return None
    return Generation(server_round=server_round, scale=scale, tensors=tensors)
