"""`ActivationBudget`: what one trunk, or one run's trunks, keep for backward passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from weakref import WeakMethod

from flower_split.segments import Trunk
from flower_split.server.compute.kept_activations import KeptActivations
from flower_split.server.compute.memory import PassCost
from flower_split.server.compute.turns import DeviceTurns


class ActivationBudget:
    """Counts tokens whose activations are kept.

    Args:
        max_tokens: The bound, in rows x tokens as computed, padding included; 0 for none.
        on_room: Called where there is more room than before, if there is a bound.
        common: What others on the device keep of too; None where nothing bounds them together.
        token_bytes: Of one token's activations, about.
    """

    def __init__(
        self,
        max_tokens: int = 0,
        on_room: Callable[[], None] | None = None,
        *,
        common: KeptActivations | None = None,
        token_bytes: int = 0,
    ) -> None:
        self.max_tokens = max_tokens
        self.token_bytes = token_bytes
        """The same."""
        self._on_room = on_room
        self._common = common
        self.kept = 0
        """Tokens whose activations are kept now."""
        if common is not None:
            common.join(self)

    @property
    def room(self) -> float:
        """Tokens that can yet be kept; infinite without a bound."""
        own = self.max_tokens - self.kept if self.max_tokens else float("inf")
        return own if self._common is None else min(own, self._common.room(self))

    def wake(self) -> None:
        """Others have let go of something; never waits for long."""
        if self._on_room is not None:
            self._on_room()

    def take(self, tokens: int) -> None:
        """Count `tokens` as kept."""
        self.kept += tokens

    def give_back(self, tokens: int) -> None:
        """Count `tokens` as freed."""
        self.kept -= tokens
        if self.max_tokens:
            self.wake()
        if self._common is not None:
            self._common.freed(self)


def budget_of(
    trunk: Trunk,
    max_tokens: int,
    turns: AbstractContextManager[object] | None,
    on_room: Callable[[], None],
) -> ActivationBudget:
    """What a trunk may keep, with what those together may whose turns it takes.

    Args:
        trunk: Whose activations.
        max_tokens: Its own bound; 0 for none.
        turns: Of its device.
        on_room: A method, which is not held.
    """
    method = WeakMethod(on_room)

    def wake() -> None:
        there = method()
        if there is not None:
            there()

    common = turns.activations if isinstance(turns, DeviceTurns) else None
    token_bytes = PassCost.of_trunk(trunk).token_bytes if common is not None else 0
    return ActivationBudget(max_tokens, wake, common=common, token_bytes=token_bytes)
