"""`Resuming`: from which state a session resumes, and which one it leaves for the next session."""

import logging
from typing import Self

from torch import Tensor, nn

from flower_split.adapters import AdapterRound, PersonalTensors, SessionState, adapter_parameters
from flower_split.client.state.folder import StateFolder
from flower_split.client.state.silo_adapter import SiloAdapter
from flower_split.client.state.store import StateStore
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
        store: The silo's states; None where a session resumes from none and leaves none.
        with_moments: Whether the optimizer's state is part of them.
    """

    def __init__(
        self,
        adapter: SiloAdapter,
        invitation: Invitation,
        store: StateStore | None,
        *,
        with_moments: bool,
    ) -> None:
        self._adapter = adapter
        self._invitation = invitation
        self._store = store
        self._with_moments = with_moments
        self._resumed = ""
        self._moments: dict[str, Tensor] = {}
        self.personal: PersonalTensors | None = None
        """The silo's, as the session left them that this one resumes from."""
        self.offers: tuple[str, ...] = () if store is None else store.offers()
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
        scaling: Scaling | None,
    ) -> Self:
        """What a session needs, with leftovers of other runs swept away."""
        with_moments = config.train.keep_optimizer
        adapter = SiloAdapter(
            parameters=dict(adapter_parameters(model)),
            scaling=scaling,
            instructions=instructions,
            max_r=max(config.lora.max_r, config.lora.r),
        )
        store = None
        if with_moments or instructions.has_personal:
            origin_run_id = invitation.origin_run_id or str(invitation.ticket.run_id)
            own = folder.of(origin_run_id, silo, personal=instructions.has_personal)
            folder.sweep(sparing=own)
            store = StateStore(own, adapter, root=folder.root)
        if invitation.purpose == "evaluate" and store is not None and not instructions.personal:
            if invitation.last_training:
                store.remove()
            store = None
        return cls(adapter, invitation, store, with_moments=with_moments)

    def begin(self, resumed: str) -> None:
        """The trunk has said which of the offered states both resume from; empty for none.

        Raises:
            WireError: it was not offered.
            StateError: it is gone, or damaged, since it was offered.
        """
        if resumed and resumed not in self.offers:
            raise WireError("the trunk resumes from a state that was not offered to it")
        if resumed and self._store is not None:
            state = self._store.load(resumed)
            if self._with_moments:
                self._moments = dict(state.moments_at(self._adapter.scaling))
            self.personal = state.personal
        elif self.offers:
            logger.warning(
                "the trunk no longer has its half of this silo's last session state, that session "
                "did not count, or it was of another cut: both sides start afresh"
            )
        self._resumed = resumed

    def restore(self, optimizer: SplitAdamW) -> None:
        """Give the session's optimizer the moments from which it resumes.

        Moments of tensors that are not trained in this round wait for one in which they are.
        """
        trained = {n: p for n, p in self._adapter.parameters.items() if p.requires_grad}
        own = {n: t for n, t in self._moments.items() if n.rpartition("/")[0] in trained}
        if self._resumed:
            load_moments(optimizer, trained, own)
            optimizer.take_trunk()
        self._moments = {n: t for n, t in self._moments.items() if n not in own}

    def end(self, optimizer: SplitAdamW | None, steps: int, adapter: AdapterRound) -> None:
        """The session is complete: save its state, or nothing more after the last training.

        Args:
            optimizer: None if the session has used none.
            steps: Steps that both sides have taken.
            adapter: The silo's part of it.

        Raises:
            StateError: the silo's personal tensors cannot be saved.
        """
        ticket, last = self._invitation.ticket, self._invitation.last_training
        instructions = self._adapter.instructions
        if self._store is None or self._invitation.purpose != "train":
            return
        if last and not instructions.personal:
            self._store.remove()
            return
        moments = dict[str, Tensor]()
        if self._with_moments and not last:
            moments = dict(self._moments)
            if optimizer is not None:
                moments |= read_moments(optimizer, self._adapter.parameters)
        if instructions.has_personal or (optimizer is not None and steps > 0):
            self._store.save(
                state_tag(ticket),
                ticket.server_round,
                SessionState(
                    moments=moments, personal=adapter.personal(), scaling=self._adapter.scaling
                ),
                after=self._resumed,
            )

    @property
    def resumes_moments(self) -> bool:
        """Whether the trunk's optimizer goes on, and the silo's has to."""
        return bool(self._resumed) and self._with_moments

    @property
    def resumed(self) -> bool:
        """Whether the session resumes from the state of an earlier one."""
        return bool(self._resumed)
