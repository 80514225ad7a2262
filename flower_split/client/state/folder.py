"""`StateFolder`: where a node saves what its next process needs, apart by run and silo.

Below `state-dir` of the node config, or else `$XDG_STATE_HOME/flower-split` or
`~/.local/state/flower-split`: `optimizer/<origin_run_id>/<silo>/`, or
`adapter/<origin_run_id>/<silo>/` where the silo has personal tensors, for the node's user alone.
What a run has left is swept by age.
"""

import hashlib
import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path

from flower_split.client.node_config import NodeConfig
from flower_split.client.state.state_file import TEMPORARY, StateFile
from flower_split.private_files import resolved
from flower_split.user_folders import user_folder

MOMENTS, PERSONAL = "optimizer", "adapter"
"""Folders below the state folder: for moments alone, and for personal tensors with the moments
beside them."""

REMEDY = "name another folder with state-dir in the node config"
"""What whoever cannot save states here may do."""

_LONGEST = 40


@dataclass(frozen=True, kw_only=True)
class StateFolder:
    """Where one node saves states, and for how long they stay."""

    root: Path
    days: float = 14

    @classmethod
    def of_node(cls, node: NodeConfig) -> "StateFolder":
        """The folder that a node config names."""
        named = Path(node.state_dir) if node.state_dir else None
        root = named or user_folder("XDG_STATE_HOME", ".local/state", key="state-dir")
        return cls(root=resolved(root), days=node.state_days)

    def of(self, origin_run_id: str, silo: str, *, personal: bool = False) -> Path:
        """The folder of one silo in one run and those that resume it, which need not exist.

        Args:
            origin_run_id: Of the first of these runs.
            silo: The silo's name.
            personal: Whether the silo has personal tensors.
        """
        kind = PERSONAL if personal else MOMENTS
        return self.root / kind / file_name(origin_run_id) / file_name(silo)

    def sweep(self, *, sparing: Path) -> None:
        """Remove states that nobody has written for too long, and the folders they leave.

        Args:
            sparing: A silo's folder that is in use, whatever its age.
        """
        oldest = time.time() - self.days * 24 * 3600
        kinds = (self.root / kind for kind in (MOMENTS, PERSONAL))
        try:
            folders = list(itertools.chain.from_iterable(one.glob("*/*") for one in kinds))
        except OSError:  # whoever saves a state there is told
            return
        for folder in folders:
            try:
                # Whatever its files' age: a folder that was just written in is in use.
                unused = folder.lstat().st_mtime < oldest
            except OSError:
                continue
            linked = any(path.is_symlink() for path in (folder, *list(folder.parents)[:2]))
            if unused and folder != sparing and not linked:
                remove_files(folder, older_than=oldest)


def remove_files(folder: Path, *, older_than: float | None = None) -> None:
    """Remove the states in a silo's folder, and the folders that are empty then.

    Nothing else is ever removed. What cannot be removed stays, for the next sweep.

    Args:
        folder: The silo's.
        older_than: Time (seconds since the epoch) of the youngest file that stays; None removes
            them all.
    """
    try:
        for path in list(folder.iterdir()):
            old = older_than is None or path.lstat().st_mtime < older_than
            if old and (path.name == TEMPORARY or StateFile.named(path) is not None):
                path.unlink()
        folder.rmdir()
        folder.parent.rmdir()
    except OSError:
        return


def file_name(name: str) -> str:
    """A name for a file, another one for every `name`, that shows what it can of it."""
    shown = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_LONGEST]
    return f"{shown}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
