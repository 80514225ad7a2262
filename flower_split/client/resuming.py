"""Resuming: from which optimizer state a session goes on, and what it leaves for the next one."""

import logging
from typing import Self

from torch import Tensor, nn

from flower_split.adapters.state import adapter_parameters
from flower_split.client.kept_optimizer import KeptOptimizer
from flower_split.client.state_folder import StateFolder
from flower_split.config.sections import SplitConfig
from flower_split.errors import WireError
from flower_split.optimization.moments import load_moments, read_moments
from flower_split.remote import SplitAdamW
from flower_split.transport.invitation import Invitation
from flower_split.transport.state_tags import state_tag

logger = logging.getLogger(__name__)


class Resuming:
    """The silo's half of the agreement by which both optimizers go on from the same session.

    Args:
        model: The client model, wrapped by PEFT.
        invitation: The session's.
        kept: What the silo has kept; None where a session keeps and resumes nothing.
    """

    def __init__(
        self, model: nn.Module, invitation: Invitation, kept: KeptOptimizer | None
    ) -> None:
        self._parameters = dict(adapter_parameters(model))
        self._invitation = invitation
        self._kept = kept
        self._resumed = ""
        self._moments: dict[str, Tensor] = {}
        self.offers: tuple[str, ...] = () if kept is None else kept.offers()
        """Tags of the states that the silo can go on from, latest first."""

    @classmethod
    def of(
        cls,
        config: SplitConfig,
        folder: StateFolder,
        invitation: Invitation,
        silo: str,
        model: nn.Module,
    ) -> Self:
        """What a session needs, with leftovers of other runs swept away."""
        if not config.train.keep_optimizer:
            return cls(model, invitation, None)
        ticket = invitation.ticket
        own = folder.of(invitation.lineage or str(ticket.run_id), silo)
        folder.sweep(sparing=own)
        kept = KeptOptimizer(own, dict(adapter_parameters(model)))
        if invitation.purpose == "train":
            return cls(model, invitation, kept)
        if invitation.last_training:
            kept.remove()
        return cls(model, invitation, None)

    def begin(self, resumed: str) -> None:
        """The trunk has said which of the offered states both go on from; empty for none.

        Raises:
            WireError: it was not offered.
            StateError: it is gone, or damaged, since it was offered.
        """
        if resumed and resumed not in self.offers:
            raise WireError("the trunk resumes an optimizer's state that was not offered to it")
        if resumed and self._kept is not None:
            self._moments = self._kept.load(resumed)
        elif self.offers:
            logger.warning(
                "the trunk no longer has its half of the optimizer's state, or the last round did "
                "not count: both sides start with a fresh optimizer"
            )
        self._resumed = resumed

    def restore(self, optimizer: SplitAdamW) -> None:
        """Give the session's optimizer the state from which it goes on."""
        if self._resumed:
            load_moments(optimizer, self._parameters, self._moments)
        self._moments = {}

    def end(self, optimizer: SplitAdamW | None, steps: int) -> None:
        """The session is complete: keep its state, or nothing more after the last training.

        Args:
            optimizer: None if the session has used none.
            steps: Steps that both sides have taken.
        """
        ticket = self._invitation.ticket
        if self._kept is None:
            return
        if self._invitation.last_training:
            self._kept.remove()
        elif optimizer is not None and steps > 0:
            self._kept.save(
                state_tag(ticket),
                ticket.server_round,
                read_moments(optimizer, self._parameters),
                after=self._resumed,
            )

    @property
    def resumed(self) -> bool:
        """Whether the session goes on from a kept state."""
        return bool(self._resumed)
