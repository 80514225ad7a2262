"""A silo's personal part: what is kept of its adapter for it alone, found in its state folder."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import OWN_KIND, StateFolder, file_name
from flower_split.client.state.kept_state import KeptState
from flower_split.client.state.left_files import newest_kept
from flower_split.errors import StateError
from flower_split.lowrank import CONTROL

_LATER_THAN_ANY = 1 << 62


@dataclass(frozen=True, kw_only=True)
class PersonalPart:
    """Adapter tensors that are kept for one silo alone, by itself or by the trunk."""

    keeper: str
    """Who keeps them, in words."""
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
    """The folders in which `silo` keeps something for itself, one a run; see `find_personal`."""
    root = _root(state_dir)
    found = sorted(path for path in (root / OWN_KIND).glob(f"*/{file_name(silo)}") if path.is_dir())
    return [path for path in found if not run or path.parent.name in (run, file_name(run))]


def find_personal(
    state_dir: Path | None, silo: str, *, run: str = "", last: int | None = None, tag: str = ""
) -> PersonalPart:
    """The newest sound tensors that a silo keeps.

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
        kept = sorted(path.name for path in (root / OWN_KIND).glob("*/*"))
        raise StateError(
            f"{root} has nothing that silo {silo!r} keeps{f' of run {run}' if run else ''}; it has "
            f"{', '.join(kept) or 'nothing of any silo'}. This is run on the silo's own machine, "
            "with the silo and state-dir of its node config"
        )
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise StateError(f"silo {silo!r} keeps parts of {len(found)} runs: choose by --run {names}")
    before = _LATER_THAN_ANY if last is None else last + 1
    generation = KeptState(found[0]).newest(before) or newest_kept(found[0], before, tag=tag)
    tensors = {} if generation is None else generation.tensors
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONTROL)}
    if generation is None or not own:
        until = "" if last is None else f" of a round up to {last}"
        raise StateError(f"{found[0]} holds no sound adapter tensors{until}")
    return PersonalPart(
        keeper="the silo",
        server_round=generation.server_round,
        scale=generation.scale,
        tensors=own,
    )


def _root(state_dir: Path | None) -> Path:
    return state_dir or StateFolder.of_node(NodeConfig()).root
