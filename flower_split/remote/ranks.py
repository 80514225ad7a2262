"""AdaLoRA in a session: the trunk's triplets are asked for, and the loss has their term."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flower_split.adapters.adalora.orthogonality import OrthogonalTerm, find_adalora
from flower_split.adapters.adalora.rank_allocation import (
    allocate_alone,
    allocate_over_cut,
)
from flower_split.config.peft import ADALORA
from flower_split.errors import AdapterError, WireError
from flower_split.remote.gradient_mirror import GradientChange
from flower_split.remote.trunk_adapter import TrunkAdapter
from flower_split.transport.messages import AdapterCall, ForwardReply


class SessionRanks:
    """`TrunkRanks` of one session, and the trunk's part of the orthogonal term.

    Args:
        model: The client model as PEFT has wrapped it.
        slot: The layer at the trunk's place.
        adapter: The trunk's part of the adapter.
        change: What was done to the gradients of the step since the trunk was told.

    Raises:
        AdapterError: the client model has no AdaLoRA adapter, or one of other ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        slot: nn.Module,
        adapter: TrunkAdapter,
        change: Callable[[], GradientChange],
    ) -> None:
        found = find_adalora(model)
        if found is None:
            raise AdapterError(
                "the session's adapter is AdaLoRA's, whose ranks the silo allocates: wrap the "
                "client model with flower_split.wrap(client_model, plan) and give attach_trunk "
                "what that returns; a silo without a layer that has an adapter cannot take part"
            )
        self._adapter, self._change = adapter, change
        self._term: Tensor | None = None
        self.orthogonal = allocate_over_cut(found, slot, self, len(adapter.modules), self.take)

    def opened(self, reply: Tensor | ForwardReply) -> Tensor:
        """h2 of a reply, and its term noted.

        Raises:
            WireError: the reply has no term.
        """
        if not isinstance(reply, ForwardReply):
            raise WireError("the trunk's answer has no orthogonality, which AdaLoRA's loss needs")
        self._term = torch.tensor(reply.orthogonality, dtype=torch.float32)
        return reply.hidden

    def refuse_saving(self) -> None:
        """Raise `AdapterError`: PEFT would save a part."""
        raise AdapterError(
            "a client model with AdaLoRA cannot be saved: PEFT writes each module at the rank that "
            "it has, and the trunk's ranks are not here. The server writes the whole adapter "
            "(output-dir, flower-split export)"
        )

    def note(self, term: Tensor) -> None:
        """The term of the pass that is under way, with its graph."""
        self._term = term

    def take(self) -> Tensor | None:
        """The term of the pass that was made last, once."""
        term, self._term = self._term, None
        return term

    def update(self) -> None:
        """See `TrunkRanks`.

        Raises:
            AdapterError: the trunk has not taken the step that the silo's gradients are of.
        """
        if self._change() != GradientChange():
            raise AdapterError(
                "gradients were scaled or clipped, and the trunk has not taken the step yet: call "
                "update_and_allocate after optimizer.step() and before zero_grad()"
            )
        self._adapter.call(AdapterCall(action="ranks_update"))

    def scores(self) -> tuple[float, ...]:
        """See `TrunkRanks`."""
        return self._adapter.call(AdapterCall(action="ranks_scores")).scores

    def mask(self, threshold: float) -> None:
        """See `TrunkRanks`."""
        self._adapter.call(AdapterCall(action="ranks_mask", threshold=threshold))

    def mask_again(self) -> int:
        """See `TrunkRanks`."""
        return self._adapter.call(AdapterCall(action="ranks_mask_again")).kept

    def reset(self) -> None:
        """See `TrunkRanks`."""
        self._adapter.call(AdapterCall(action="ranks_reset"))

    def masked(self) -> None:
        """See `TrunkRanks`."""
        self._adapter.note_step()


def opened(ranks: SessionRanks | None, reply: Tensor | ForwardReply) -> Tensor:
    """h2 of the trunk's answer, in a session that has `ranks`.

    Raises:
        WireError: it is not the answer to such a session.
    """
    if ranks is not None:
        return ranks.opened(reply)
    if isinstance(reply, ForwardReply):
        raise WireError("the trunk told an orthogonality, and the session has no AdaLoRA")
    return reply


def session_ranks(
    model: nn.Module,
    slot: nn.Module,
    adapter: TrunkAdapter,
    change: Callable[[], GradientChange],
) -> SessionRanks | None:
    """Of a session with AdaLoRA at the trunk; None of any other, whatever the model had before.

    Raises:
        AdapterError: see `SessionRanks`.
    """
    if adapter.is_there and adapter.shown.get("method") == ADALORA:
        return SessionRanks(model, slot, adapter, change)
    found = find_adalora(model)
    if found is not None:
        allocate_alone(found)
    return None


def own_term(model: nn.Module, slot: nn.Module) -> OrthogonalTerm | None:
    """The orthogonal term of a client model whose trunk is frozen; None without AdaLoRA."""
    found = find_adalora(model)
    return None if found is None else OrthogonalTerm(found, slot)
