"""Snapshots: what a silo has had the trunk keep of its adapter, to go back to it by a tag.

A silo's checkpoint holds the tag alone, so that the trunk's values need not leave it. A snapshot
belongs to the silo's name, and outlives the session that made it.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flower_split.errors import SequenceError, StateError, UnsafeFolderError, WireError
from flower_split.private_files import (
    check_private,
    make_folder,
    make_private,
    opened,
    write_whole,
)
from flower_split.transport.state_tags import is_tag

MOST_SILOS = 256
"""Whose snapshots are in memory; those of the silo that has made none for longest go first."""
MOST_SNAPSHOTS = 16
"""Of one silo; the oldest one goes for a new one. A checkpoint has two: adapter and moments."""

MOST_BYTES = 4 << 30
"""In memory, of all silos together; the oldest ones of the silo that has most go first."""


_REMEDY = "give the SnapshotStore another folder"


class SnapshotStore:
    """The snapshots of all silos of one trunk, on the CPU.

    Args:
        folder: Where they are kept as safetensors files, too, so that they outlive the process;
            None keeps them in memory alone.
        most: Snapshots of one silo.
        most_silos: Silos whose snapshots are in memory.
        most_bytes: In memory, of all silos together.

    Raises:
        StateError: the folder cannot be made, or others may write into it.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        most: int = MOST_SNAPSHOTS,
        most_silos: int = MOST_SILOS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._folder = None if folder is None else _made(Path(folder))
        self._most = most
        self._most_silos = most_silos
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, Mapping[str, Tensor]]] = {}

    def put(self, silo: str, tag: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` of `silo` under `tag`.

        Raises:
            WireError: the tag is malformed.
            SequenceError: they cannot be written, or are larger than all snapshots may be.
        """
        path = self._path(silo, tag)
        if _bytes(tensors) > self._most_bytes:
            raise SequenceError(
                f"a snapshot of {_bytes(tensors)} bytes, where all together may have "
                f"{self._most_bytes}"
            )
        with self._lock:
            own = self._held.pop(silo, {})
            self._held[silo] = own
            for name in list(self._held)[: -self._most_silos]:
                del self._held[name]
            own.pop(tag, None)
            own[tag] = dict(tensors)
            for old in list(own)[: -self._most]:
                del own[old]
            self._keep_within_bytes()
        if path is None or self._folder is None:
            return
        try:
            make_private(path.parent, below=self._folder, remedy=_REMEDY)
            write_whole(path, save(dict(tensors)), temporary=f"{tag}.part")
            files = sorted(path.parent.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
            for old_file in files[: -self._most]:
                old_file.unlink(missing_ok=True)
        except UnsafeFolderError as error:
            raise SequenceError(f"a snapshot cannot be written: {error}") from error
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise SequenceError(f"a snapshot cannot be written to {path}: {why}") from error

    def get(self, silo: str, tag: str) -> Mapping[str, Tensor]:
        """The tensors of `silo` under `tag`.

        Raises:
            WireError: the tag is malformed.
            SequenceError: there is no such snapshot of the silo, or none any more.
        """
        path = self._path(silo, tag)
        with self._lock:
            found = self._held.get(silo, {}).get(tag)
        if found is not None:
            return found
        if path is not None and os.path.lexists(path):
            try:
                check_private(path.parent, below=self._folder, remedy=_REMEDY)
                with opened(path):
                    # By its name again: nobody else can exchange it in a folder that was checked.
                    return load_file(path)
            except (OSError, SafetensorError, UnsafeFolderError) as error:
                raise SequenceError(f"the snapshot {path} cannot be read: {error}") from error
        raise SequenceError(
            f"the trunk has no snapshot {tag[:8]}… of silo {silo!r}: it keeps the last "
            f"{self._most} of a silo, "
            + (
                "until its process ends. Give its TrunkEngine a folder for snapshots, to resume in "
                "another process"
                if self._folder is None
                else f"in {self._folder}"
            )
        )

    def _keep_within_bytes(self) -> None:
        sizes = {
            silo: sum(map(_bytes, snapshots.values())) for silo, snapshots in self._held.items()
        }
        while sum(sizes.values()) > self._most_bytes:
            largest = max(sizes, key=lambda silo: sizes[silo])
            oldest = self._held[largest].pop(next(iter(self._held[largest])))
            sizes[largest] -= _bytes(oldest)

    def _path(self, silo: str, tag: str) -> Path | None:
        if not is_tag(tag):
            raise WireError("a snapshot's tag is 64 hexadecimal digits")
        if self._folder is None:
            return None
        return self._folder / (silo.encode().hex() or "-") / f"{tag}.safetensors"


def _made(folder: Path) -> Path:
    try:
        made = make_folder(folder)
        make_private(made, remedy=_REMEDY)
    except OSError as error:
        raise StateError(f"snapshots cannot be written to {folder}: {error.strerror}") from error
    return made


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
