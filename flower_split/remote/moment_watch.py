"""The silo's half of AdamW's state: what is done to it alone is done to half of a model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.tensor_digest import tensor_digest


class MomentWatch:
    """Notices when the state of an optimizer is changed by anyone but its steps."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[Tensor, int]] = {}

    def note(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Take `state`, an optimizer's, as it is."""
        self._seen = {key: (value, value._version) for key, value in _tensors(state)}

    def check(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Raise `AdapterError` where a tensor of `state` is not as it was noted."""
        now = dict(_tensors(state))
        changed = [
            key
            for key in now.keys() | self._seen.keys()
            if key not in now
            or key not in self._seen
            or now[key] is not self._seen[key][0]
            or now[key]._version != self._seen[key][1]
        ]
        if changed:
            raise AdapterError(
                f"{len(changed)} tensors of this SplitAdamW's state (first: "
                f"{min(name for _, name in changed)}) were changed by hand, and the trunk's half "
                "of the state was not: begin with a new session, go back by load_state_dict of a "
                "state_dict() as it was given, or attach_trunk(..., trunk_parameters=True), with "
                "which any optimizer of torch has all of the state"
            )


def moments_digest(state: Mapping[Any, Any]) -> str:
    """SHA-256 of the state of a saved optimizer: every tensor's place, dtype, shape and values."""
    return tensor_digest(
        (f"{index} {name}", value if isinstance(value, Tensor) else _written(value))
        for index in sorted(state, key=str)
        for name, value in sorted(state[index].items())
    )


def _written(value: object) -> Tensor:
    return torch.tensor(list(repr(value).encode()), dtype=torch.uint8)


def _tensors(state: Mapping[Tensor, Mapping[str, Any]]) -> list[tuple[tuple[int, str], Tensor]]:
    return [
        ((id(parameter), name), value)
        for parameter, held in state.items()
        for name, value in held.items()
        if isinstance(value, Tensor)
    ]
