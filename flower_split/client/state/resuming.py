"""Resuming: from which state a session goes on, and what it leaves for the next one."""

import logging
from typing import Self

from torch import Tensor, nn

from flower_split.adapters import AdapterRound, Kept
from flower_split.adapters.state import adapter_parameters
from flower_split.client.state.folder import KIND, OWN_KIND, StateFolder
from flower_split.client.state.left_files import LeftFiles
from flower_split.client.state.left_state import SessionState, SiloAdapter
from flower_split.config.sections import SplitConfig
from flower_split.errors import WireError
from flower_split.lowrank import Instructions, Scaling
from flower_split.optimization.moments import load_moments, read_moments
from flower_split.remote import SplitAdamW
from flower_split.transport.invitation import Invitation
from flower_split.transport.state_tags import state_tag

logger = logging.getLogger(__name__)


class Resuming:
    """The silo's half of the agreement by which both parties resume from the same session.

    Args:
        adapter: The silo's part of it.
        invitation: The session's.
        kept: What the silo has kept; None where a session keeps and resumes nothing.
        keeps_moments: Whether the optimizer's state is among it.
    """

    def __init__(
        self,
        adapter: SiloAdapter,
        invitation: Invitation,
        kept: LeftFiles | None,
        *,
        keeps_moments: bool,
    ) -> None:
        self._parameters = dict(adapter.parameters)
        self._instructions = adapter.instructions
        self._invitation = invitation
        self._files = kept
        self._keeps_moments = keeps_moments
        self._resumed = ""
        self._moments: dict[str, Tensor] = {}
        self.kept: Kept | None = None
        """What the silo alone has of the session that it resumes from."""
        self.offers: tuple[str, ...] = () if kept is None else kept.offers()
        """Tags of the states that the silo can resume from, latest first."""

    @classmethod
    def of(
        cls,
        config: SplitConfig,
        folder: StateFolder,
        invitation: Invitation,
        silo: str,
        model: nn.Module,
        *,
        instructions: Instructions,
        scaling: Scaling,
    ) -> Self:
        """What a session needs, with leftovers of other runs swept away."""
        keeps_moments = config.train.keep_optimizer
        adapter = SiloAdapter(
            parameters=dict(adapter_parameters(model)),
            scaling=scaling,
            instructions=instructions,
            max_r=max(config.lora.max_r, config.lora.r),
        )
        kept = None
        if keeps_moments or instructions.keeps_something:
            kind = OWN_KIND if instructions.keeps_something else KIND
            origin_run_id = invitation.origin_run_id or str(invitation.ticket.run_id)
            own = folder.of(origin_run_id, silo, kind)
            folder.sweep(sparing=own)
            kept = LeftFiles(own, adapter)
        if invitation.purpose == "evaluate" and kept is not None and not instructions.keeps:
            if invitation.last_training:
                kept.remove()
            kept = None
        return cls(adapter, invitation, kept, keeps_moments=keeps_moments)

    def begin(self, resumed: str) -> None:
        """The trunk has said which of the offered states both resume from; empty for none.

        Raises:
            WireError: it was not offered.
            StateError: it is gone, or damaged, since it was offered.
        """
        if resumed and resumed not in self.offers:
            raise WireError("the trunk resumes from a state that was not offered to it")
        if resumed and self._files is not None:
            left = self._files.load(resumed)
            self._moments = dict(left.moments) if self._keeps_moments else {}
            self.kept = left.kept
        elif self.offers:
            logger.warning(
                "the trunk no longer has its half of what this silo's last session left, or that "
                "session did not count: both sides start afresh"
            )
        self._resumed = resumed

    def restore(self, optimizer: SplitAdamW) -> None:
        """Give the session's optimizer the state from which it goes on.

        Moments of tensors that are not trained in this round wait for one in which they are.
        """
        trained = {n: p for n, p in self._parameters.items() if p.requires_grad}
        own = {n: t for n, t in self._moments.items() if n.rpartition("/")[0] in trained}
        if self._resumed:
            load_moments(optimizer, trained, own)
        self._moments = {n: t for n, t in self._moments.items() if n not in own}

    def end(self, optimizer: SplitAdamW | None, steps: int, adapter: AdapterRound) -> None:
        """The session is complete: keep its state, or nothing more after the last training.

        Args:
            optimizer: None if the session has used none.
            steps: Steps that both sides have taken.
            adapter: The silo's part of it.

        Raises:
            StateError: what the silo alone has cannot be kept.
        """
        ticket, last = self._invitation.ticket, self._invitation.last_training
        if self._files is None or self._invitation.purpose != "train":
            return
        if last and not self._instructions.keeps:
            self._files.remove()
            return
        moments = dict[str, Tensor]()
        if self._keeps_moments and not last:
            moments = dict(self._moments)
            if optimizer is not None:
                moments |= read_moments(optimizer, self._parameters)
        if self._instructions.keeps_something or (optimizer is not None and steps > 0):
            self._files.save(
                state_tag(ticket),
                ticket.server_round,
                SessionState(moments=moments, kept=adapter.kept()),
                after=self._resumed,
            )

    @property
    def resumed(self) -> bool:
        """Whether the session resumes from a kept state."""
        return bool(self._resumed)
