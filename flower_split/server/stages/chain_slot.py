"""The adapter of a session whose trunk is a chain, as `AdapterCalls` asks for it."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic

from torch import Tensor

from flower_split.adapters.adalora.rank_allocation import TrunkAllocator
from flower_split.adapters.state import check_state
from flower_split.errors import SequenceError
from flower_split.server.stages.futures import gathered
from flower_split.server.stages.messages import (
    CopyAdapter,
    LoadMoments,
    ReadAdapter,
    ReadHeld,
    ReadMoments,
    StageRequest,
    WriteAdapter,
)
from flower_split.server.stages.parts import StageParts, together
from flower_split.server.stages.stage import P, StageSession


class ChainSlot(Generic[P]):
    """`CalledAdapter` over the stages that have a part of it. Its methods wait for them.

    Args:
        sessions: The session's part at every stage.
        parts: Which stage holds what.
        is_shared: Whether it is a replica of the master.
    """

    def __init__(
        self, sessions: Sequence[StageSession[P]], parts: StageParts, *, is_shared: bool
    ) -> None:
        self._sessions = list(sessions)
        self._parts = parts
        self.is_shared = is_shared
        """See `CalledAdapter`, as all of these."""

    @property
    def held(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The same."""
        return tuple(one for part in self._all(ReadHeld()) for one in part)

    @property
    def ranks(self) -> TrunkAllocator:
        """A chain has no AdaLoRA."""
        raise SequenceError("this session's adapter has no ranks to allocate: no AdaLoRA")

    def update_ranks(self) -> None:
        """The same."""
        _ = self.ranks

    def state(self) -> dict[str, Tensor]:
        """The same."""
        return together(self._all(ReadAdapter()))

    def write(self, state: Mapping[str, Tensor]) -> None:
        """At every stage or, where it does not fit, at none."""
        check_state(state, dict(self.held))
        self._each([WriteAdapter(state=part) for part in self._parts.split(state)])

    def copy(self, name: str) -> None:
        """The same."""
        self._all(CopyAdapter(name=name))

    def all_moments(self) -> dict[str, Tensor]:
        """The same."""
        return together(self._all(ReadMoments()))

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """At every stage or, where they do not fit, at none."""
        split = self._parts.split(moments)
        self._each([LoadMoments(moments=part, only_check=True) for part in split])
        self._each([LoadMoments(moments=part) for part in split])

    def _all(self, request: StageRequest) -> list[Any]:
        return self._each([request for _ in self._sessions])

    def _each(self, requests: Sequence[StageRequest]) -> list[Any]:
        asked = [
            session.ask(request) for session, request in zip(self._sessions, requests, strict=True)
        ]
        return gathered(asked).result()
