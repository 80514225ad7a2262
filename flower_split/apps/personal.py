"""A silo's personal tensors, found in its state folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flower_split.adapters import SessionState
from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import PERSONAL, StateFolder, file_name
from flower_split.client.state.store import newest_state
from flower_split.errors import StateError
from flower_split.lowrank import CONTROL

_LATER_THAN_ANY = 1 << 62


@dataclass(frozen=True, kw_only=True)
class PersonalPart:
    """Adapter tensors that belong to one silo alone, on its own layers or on the trunk's."""

    holder: str
    """Who has them, in words: the silo, or the trunk."""
    server_round: int
    """Whose training left them."""
    scale: float
    """Of their products."""
    tensors: dict[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """Names of the modules that they belong to, sorted."""
        return sorted({name.rpartition(".lora_")[0] for name in self.tensors})


def personal_folders(state_dir: Path | None, silo: str, run: str = "") -> list[Path]:
    """The folders with personal tensors of `silo`, one a run; see `find_personal`."""
    root = _root(state_dir)
    own = (root / PERSONAL).glob(f"*/{file_name(silo)}")
    found = sorted(path for path in own if os.path.isdir(path))
    return [path for path in found if not run or path.parent.name in (run, file_name(run))]


def find_personal(
    state_dir: Path | None, silo: str, *, run: str = "", last: int | None = None, tag: str = ""
) -> PersonalPart:
    """The newest sound personal tensors of a silo.

    Args:
        state_dir: As in the node config; None for its default.
        silo: The silo's name.
        run: The run's `origin_run_id`, or the name of its folder; may be empty where there is
            one only.
        last: The last round whose tensors are wanted; None for any.
        tag: Of the session that left them, where that is known.

    Raises:
        StateError: there are none, or of several runs.
    """
    root, found = _root(state_dir), personal_folders(state_dir, silo, run)
    if not found:
        silos = sorted(path.name for path in (root / PERSONAL).glob("*/*"))
        which = f"{silo!r} in run {run}" if run else repr(silo)
        raise StateError(
            f"{root} has no personal tensors of silo {which}; it has "
            f"those of {', '.join(silos) or 'no silo'}. This is run on the silo's own machine, "
            "with the silo and state-dir of its node config"
        )
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise StateError(
            f"silo {silo!r} has personal tensors of {len(found)} runs: choose by --run {names}"
        )
    before = _LATER_THAN_ANY if last is None else last + 1
    stored = newest_state(found[0], before, tag=tag)
    part = None if stored is None else personal_part(stored.state, stored.server_round, "the silo")
    if part is None:
        until = "" if last is None else f" of a round up to {last}"
        raise StateError(f"{found[0]} holds no sound personal tensors{until}")
    return part


def personal_part(state: SessionState, server_round: int, holder: str) -> PersonalPart | None:
    """The adapter tensors among what `state` has for one silo alone; None where it has none.

    Args:
        state: Of one of the silo's sessions.
        server_round: The session's.
        holder: Who has them, in words.
    """
    tensors = {n: t for n, t in state.personal.tensors.items() if not n.startswith(CONTROL)}
    if not tensors:
        return None
    return PersonalPart(
        holder=holder, server_round=server_round, scale=state.personal.scale, tensors=tensors
    )


def _root(state_dir: Path | None) -> Path:
    return state_dir or StateFolder.of_node(NodeConfig()).root
