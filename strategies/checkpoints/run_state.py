"""The state of a run after a round, as a checkpoint: everything that the next round depends on.

Arrays are named `adapter/…` (the whole adapter, as it is exported), `result/…`, `inner/…` (the
inner strategy), `left_states/…` (the session states, as their first version called them) and
`random/…`; the rest is JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.adapters.plan import plan_to_fields
from flower_split.checkpoint import Checkpoint, Encoded, decode, encode
from flower_split.checkpoint.kinds import global_randomness
from flower_split.config.resuming import settings
from flower_split.config.sections import SplitConfig
from flower_split.errors import DamagedStateError
from flower_split.lowrank import Scaling
from flower_split.reporting import installed_versions
from flower_split.server.session_states import SiloState
from flower_split.strategies.checkpoints.inner_state import FLOWER_KINDS
from flower_split.strategies.history import SplitResult
from flower_split.strategies.hosting.host import TrunkHost

ADAPTER = "adapter/"
"""Beginning of the names of the adapter's arrays."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint of a run holds, besides the result."""

    origin_run_id: str = field(metadata={"written": "lineage"})
    """Names the run and those that resume it."""
    num_rounds: int
    settings: Mapping[str, Any]
    """Every run-config key, see `flower_split.config.resuming`."""
    plan: Mapping[str, Any]
    """Plan of the adapter, see `flower_split.adapters.plan`."""
    versions: Mapping[str, str]
    inner: Any
    """Encoded, see `flower_split.strategies.checkpoints.inner_state`."""
    result: Any
    """Encoded, without the adapter."""
    session_states: Any = field(metadata={"written": "left_states"})
    """The trunk's halves of what silos' sessions left, encoded."""
    random: Any
    """The global generators, see `flower_split.checkpoint.kinds.global_randomness`, encoded."""

    @property
    def mentions_nodes(self) -> bool:
        """Whether the inner strategy keeps something for single nodes."""
        return '"kind": "node"' in json.dumps(self.inner)


_WRITTEN = {entry.name: entry.metadata.get("written", entry.name) for entry in fields(RunState)}
"""Key in the checkpoint's state by field of `RunState`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenSessionState:
    """A `SiloState` with the fields that a checkpoint has of it."""

    silo: str
    server_round: int
    tag: str
    tensors: Mapping[str, Tensor]
    kept: PersonalTensors
    scaling: Scaling | None

    @staticmethod
    def of(one: SiloState) -> "WrittenSessionState":
        """`one` as a checkpoint has it."""
        told: dict[str, Any] = {
            "silo": one.silo,
            "server_round": one.server_round,
            "tag": one.tag,
            "tensors": one.state.moments,
            "kept": one.state.personal,
            "scaling": one.state.scaling,
        }
        return (
            WrittenSessionState(**told)
            if one.cuts is None
            else WrittenCutState(**told, cuts=one.cuts)
        )

    def read(self) -> SiloState:
        """The session state as the trunk resumes from it."""
        state = SessionState(moments=self.tensors, personal=self.kept, scaling=self.scaling)
        return SiloState(silo=self.silo, server_round=self.server_round, tag=self.tag, state=state)


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenCutState(WrittenSessionState):
    """The same in a run whose silos choose their cuts."""

    cuts: tuple[int, int]

    def read(self) -> SiloState:
        """The session state, with the cut that it is of."""
        return replace(super().read(), cuts=self.cuts)


def pack(
    result: SplitResult,
    *,
    server_round: int,
    complete: bool,
    best_round: int | None,
    config: SplitConfig,
    origin_run_id: str,
    num_rounds: int,
    host: TrunkHost,
    inner: Encoded,
) -> Checkpoint:
    """The checkpoint of a run after a round; arguments as the fields of what is made."""
    told = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "adapter"}
    states = [WrittenSessionState.of(one) for one in host.session_states()]
    encoded = {
        "inner": inner,
        "result": encode(told, "result", kinds=FLOWER_KINDS),
        "session_states": encode(states, "left_states"),
        "random": encode(global_randomness(), "random"),
    }
    adapter = result.adapter or host.adapter(result.arrays)
    arrays = {f"{ADAPTER}{name}": tensor.numpy() for name, tensor in adapter.items()}
    for part in encoded.values():
        arrays |= part.arrays
    state = RunState(
        origin_run_id=origin_run_id,
        num_rounds=num_rounds,
        settings=settings(config),
        plan=plan_to_fields(host.plan),
        versions=installed_versions(),
        **{name: part.tree for name, part in encoded.items()},
    )
    return Checkpoint(
        server_round=server_round,
        complete=complete,
        best_round=best_round,
        arrays=arrays,
        state={key: getattr(state, name) for name, key in _WRITTEN.items()},
    )


def read_state(checkpoint: Checkpoint) -> RunState:
    """The state of the run that wrote `checkpoint`.

    Raises:
        DamagedStateError: it is not the checkpoint of a run.
    """
    try:
        read = {name: checkpoint.state[key] for name, key in _WRITTEN.items()}
        if len(checkpoint.state) > len(read):
            raise KeyError(*(checkpoint.state.keys() - _WRITTEN.values()))
        return RunState(**read)
    except KeyError as error:
        raise DamagedStateError(
            f"the checkpoint of round {checkpoint.server_round} is none of a run, or another "
            "version of flower_split wrote it"
        ) from error


def read_adapter(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of the adapter, as in `SplitResult.adapter`."""
    return {
        name.removeprefix(ADAPTER): torch.from_numpy(array)
        for name, array in checkpoint.arrays.items()
        if name.startswith(ADAPTER)
    }


def read_result(checkpoint: Checkpoint) -> SplitResult:
    """The result so far.

    Raises:
        StateError: the checkpoint holds none that this version can read.
    """
    told = decode(checkpoint.state["result"], checkpoint.arrays, kinds=FLOWER_KINDS)
    try:
        result = SplitResult(**told)
    except TypeError as error:
        raise DamagedStateError(f"the saved result cannot be read: {error}") from error
    order = [name for name, _ in checkpoint.state["plan"]["shapes"]]
    adapter = read_adapter(checkpoint)
    if checkpoint.server_round > 0:
        first = {name: adapter[name] for name in order if name in adapter}
        result.adapter = first | adapter  # what was folded into the model comes after all others
    return result


def read_session_states(checkpoint: Checkpoint) -> list[SiloState]:
    """The trunk's halves of what silos' sessions left."""
    states: list[WrittenSessionState] = decode(checkpoint.state["left_states"], checkpoint.arrays)
    return [state.read() for state in states]


def read_randomness(checkpoint: Checkpoint) -> dict[str, Any]:
    """States of the global generators, for `restore_global_randomness`."""
    states: dict[str, Any] = decode(checkpoint.state["random"], checkpoint.arrays)
    return states
