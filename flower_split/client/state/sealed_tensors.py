"""A sealed file: named tensors and facts about them, whole or not at all, with a digest over both.

What a node keeps for its next process. The digest finds damage, not an attacker: a folder that
others can write to is refused before (`state_folder.check_private`).
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flower_split.durable import sync_folder
from flower_split.errors import StateError

TEMPORARY = "incoming.tmp"
"""Name of a file that is being written, beside its place."""

_DIGEST = "digest"


def write_sealed(path: Path, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write the file next to its place, force it to the disk, and rename it.

    Args:
        path: Replaced if it exists.
        facts: Anything but `digest`.
        tensors: By name.

    Raises:
        OSError: the disk is full, the folder is read-only, …; what was at `path` is still there.
    """
    # Contiguous copies of their own, because safetensors refuses tensors that share memory.
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    data = save(whole, metadata={**facts, _DIGEST: _digest(facts, whole)})
    temporary = path.with_name(TEMPORARY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_sealed(
    path: Path, *, most_bytes: float = math.inf
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Facts and tensors of a file, which is not trusted.

    Args:
        path: The file.
        most_bytes: Size that it may have.

    Raises:
        StateError: it is no such file, larger than it may be, or damaged.
        OSError: it cannot be read.
    """
    if not path.is_file() or path.is_symlink():
        raise StateError("it is no regular file")
    size = path.stat().st_size
    if size > most_bytes:
        raise StateError(f"it has {size} bytes, and a state of this model at most {most_bytes}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
    except (SafetensorError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise StateError("it is no safetensors file, or a part of one") from error
    if facts.pop(_DIGEST, "") != _digest(facts, tensors):
        raise StateError("its digest is not that of its content: the file is damaged")
    return facts, tensors


def why(error: OSError | StateError) -> str:
    """What to say of a file that could not be written or read."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


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
