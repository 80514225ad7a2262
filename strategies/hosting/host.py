"""The host of a run's trunk: opens it, hands out invitations, and closes it in every ending."""

import weakref
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from typing import Self

from flwr.app import ArrayRecord
from flwr.supercore.exit import add_exit_handler
from torch import Tensor

from flower_split.adapters import AdapterPlan, method_problems
from flower_split.config.problems import raise_problems
from flower_split.config.sections import SplitConfig
from flower_split.config.trunk import RAY
from flower_split.control.service_trunk import ServiceTrunk
from flower_split.server.hosting.run_trunk import Invitee, RunTrunk
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import TrunkStart
from flower_split.strategies.hosting.adapter_parts import AdapterParts, to_arrays, to_tensors
from flower_split.strategies.hosting.at_service import service_trunk
from flower_split.strategies.hosting.in_process import in_process_trunk
from flower_split.strategies.hosting.invited_silo import InvitedSilo, RoundTerms
from flower_split.transport.invitation import Invitation

TICKET_GRACE = 30.0
"""Seconds by which a ticket outlives its round's deadline; the round's end revokes it anyway."""

_open_hosts: "weakref.WeakSet[TrunkHost]" = weakref.WeakSet()


class TrunkHost:
    """The trunk of one or several runs with the same configuration, as a context manager.

    Args:
        config: The configuration of those runs.

    Raises:
        ModelError: on entering: the model cannot be loaded, or not be cut there.
        AdapterError: on entering: the adapter settings do not fit the model.
        ConfigError: on entering: the address cannot be bound, the TLS files are not good, or
            virtual tokens leave no place for a sequence in the model's context.
        TrunkError: on entering: `trunk.service` cannot be reached, or does not take the run.
    """

    def __init__(self, config: SplitConfig) -> None:
        self.config = config
        self.origin_run_id = ""
        """Names what silos keep from round to round: the run id of the first run, in a run that
        resumes another; empty for the run's own."""
        self._service: ServiceTrunk | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        raise_problems(method_problems(self.config), "the adapters' method")
        with ExitStack() as stack:
            if self.config.trunk.service:
                self._service = stack.enter_context(service_trunk(self.config))
            trunk = self._service or stack.enter_context(in_process_trunk(self.config))
            self._trunk: RunTrunk = trunk
            layout = self._trunk.layout
            self._parts = (
                AdapterParts(dict(layout.plan.shapes), layout.trunk_names, layout.either_names)
                if layout.mode == "federated"
                else AdapterParts(layout.silo_shapes, ())
            )
            _open_hosts.add(self)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End every session and stop listening. Can be called twice."""
        self._stack.close()
        _open_hosts.discard(self)

    @property
    def address(self) -> str:
        """Host and port that silos connect to."""
        return self._trunk.channel.address

    @property
    def parameters(self) -> int:
        """Parameters of the uncut model."""
        return self._trunk.layout.parameters

    @property
    def uses_tls(self) -> bool:
        """Whether silos connect over TLS."""
        return self._trunk.channel.tls

    @property
    def parts(self) -> AdapterParts:
        """Which adapter tensors the inner strategy sees, and which of them are the trunk's."""
        return self._parts

    @property
    def plan(self) -> AdapterPlan:
        """The plan of the adapter that a run yields: without the trunk's layers when frozen."""
        return self._trunk.layout.plan

    def begin(self, arrays: ArrayRecord | None, *, any_ranks: bool = False) -> ArrayRecord:
        """What a run's inner strategy starts from; a `shared` trunk and all optimizers start anew.

        Args:
            arrays: The adapter to start from, with the trunk's part or, unless `federated`,
                without it; None makes PEFT's own initialisation from the configured seed.
            any_ranks: Whether modules may have other ranks than the run's, and folded factors.

        Raises:
            AdapterError: `arrays` is not such an adapter.
        """
        layout = self._trunk.layout
        shared = {name: layout.initial[name] for name in layout.trunk_names}
        if arrays is not None and layout.mode == "shared" and shared.keys() <= arrays.keys():
            shared = to_tensors(ArrayRecord({name: arrays[name] for name in shared}))
            arrays = ArrayRecord({n: array for n, array in arrays.items() if n not in shared})
        if arrays is not None:
            arrays = self._parts.checked(arrays, any_ranks=any_ranks)
        self._trunk.begin(shared)
        if arrays is None:
            arrays = to_arrays({name: layout.initial[name] for name in self._parts.shapes})
        return arrays

    def adapter(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Every tensor of the adapter that `plan` names, float32, the trunk's included.

        The modules' ranks are those of `arrays`; what was folded into the model comes at the end.
        """
        state = self._parts.to_state(arrays)
        if self._trunk.layout.mode == "shared":
            state |= self._trunk.shared_state()
        return {name: state.pop(name) for name in self.plan.names} | state

    def invite(
        self,
        terms: RoundTerms,
        run_id: int,
        node_id: int,
        start: TrunkStart,
        *,
        sample: bool = False,
    ) -> InvitedSilo:
        """A silo with new tickets, whose session is to start from `start`.

        Args:
            terms: Of the exchange.
            run_id: The run that its message belongs to.
            node_id: The silo's node.
            start: What the trunk's end of its session starts from and is to do.
            sample: Whether the silo is asked to continue the sample prompt.
        """
        session = self._trunk.invite(
            Invitee(
                run_id=run_id,
                node_id=node_id,
                server_round=terms.server_round,
                purpose=terms.purpose,
                seconds=terms.seconds + TICKET_GRACE,
            ),
            start,
        )
        channel = self._trunk.channel
        invitation = Invitation(
            address=channel.address,
            ticket=session.ticket,
            purpose=terms.purpose,
            num_rounds=terms.num_rounds,
            origin_run_id=self.origin_run_id or str(run_id),
            last_training=terms.last_training,
            sample=sample,
            tls=channel.tls,
            ca=channel.ca,
            seconds=terms.seconds,
            offer=session.offer,
        )
        return InvitedSilo(invitation, session)

    def session_states(self) -> list[SiloState]:
        """The trunk's halves of what the next round can resume from."""
        return self._trunk.session_states()

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """Resume from `states`, which `session_states` gave; after `begin`, which forgets all.

        Raises:
            StateError: a state is not one of this trunk's adapters; nothing is changed then.
        """
        self._trunk.load_session_states(states)

    @property
    def waiting(self) -> int:
        """Passes that wait at the trunk now."""
        return self._trunk.waiting

    def note_connected(self, node_ids: Collection[int]) -> None:
        """The nodes that are connected now: no other may take one's name over."""
        self._trunk.note_connected(node_ids)

    @property
    def can_restart(self) -> bool:
        """Whether the trunk may end and come back while the run goes on."""
        return self._service is not None or self.config.trunk.engine == RAY

    def confirm(self) -> None:
        """See that the trunk goes on, where silos have failed.

        Raises:
            TrunkRestartedError: their sessions were lost with it.
        """
        self._trunk.confirm()

    def reopen(self) -> None:
        """Open the run anew at a trunk that has come back; `begin` has to follow. Stages that Ray
        brings back have what they need.

        Raises:
            TrunkError: it did not come back, or as another one.
        """
        if self._service is not None:
            self._service.reopen()


def _close_all() -> None:
    for host in list(_open_hosts):
        host.close()


# Flower ends a stopped run's process by itself, and then no `finally` runs.
add_exit_handler(_close_all)
