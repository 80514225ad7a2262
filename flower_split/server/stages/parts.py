"""Parts: named tensors of a trunk's adapter, taken apart by stage and put together again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.segments import layer_index
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import TrunkStart

Tensors = Mapping[str, Tensor]


class StageParts:
    """Which stage holds what, by the layer that a name tells.

    Args:
        layers: Indices of every stage's, in their order.
        path: `layers_path` of the model.
    """

    def __init__(self, layers: Sequence[range], path: str) -> None:
        self._layers = list(layers)
        self._path = path

    def split(self, tensors: Tensors) -> list[dict[str, Tensor]]:
        """Every stage's part, in the order given. What no stage holds is the first one's to
        refuse."""
        parts: list[dict[str, Tensor]] = [{} for _ in self._layers]
        for name, tensor in tensors.items():
            parts[self._stage_of(name)][name] = tensor
        return parts

    def start(self, start: TrunkStart | None) -> list[TrunkStart | None]:
        """What every stage's part of a session starts from."""
        if start is None:
            return [None for _ in self._layers]
        return [replace(start, tensors=part) for part in self.split(start.tensors)]

    def state(self, state: SiloState) -> list[SiloState]:
        """Every stage's part of a session state."""
        held, own = state.state, state.state.personal
        moments, personal = self.split(held.moments), self.split(own.tensors)
        return [
            replace(
                state,
                state=replace(
                    held,
                    moments=moments[number],
                    personal=PersonalTensors(tensors=personal[number], scale=own.scale),
                ),
            )
            for number in range(len(self._layers))
        ]

    def _stage_of(self, name: str) -> int:
        index = layer_index(name, self._path)
        return next((n for n, held in enumerate(self._layers) if index in held), 0)


def together(parts: Iterable[Tensors]) -> dict[str, Tensor]:
    """The parts of all stages as one, in the order of the layers."""
    return {name: tensor for part in parts for name, tensor in part.items()}


def one_state(parts: Sequence[SiloState | None]) -> SiloState | None:
    """What the stages' parts of a session's state are together; None where there are none."""
    held = [part for part in parts if part is not None]
    if not held:
        return None
    # A stage without adapters leaves nothing, and knows of no scale.
    personal = [part.state.personal for part in held if part.state.personal.tensors]
    scale = personal[0].scale if personal else held[0].state.personal.scale
    return replace(
        held[0],
        state=SessionState(
            moments=together(part.state.moments for part in held),
            personal=PersonalTensors(tensors=together(p.tensors for p in personal), scale=scale),
            scaling=held[0].state.scaling,
        ),
    )
