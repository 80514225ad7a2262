"""The host of a run's trunk: loads it, serves it, hands out tickets, and stops in every ending."""

import logging
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Self

from flwr.app import ArrayRecord
from flwr.supercore.exit import add_exit_handler
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.adapters import (
    AdapterPlan,
    initial_adapter,
    method_problems,
    resolve_plan,
)
from flower_split.adapters.methods import PREFIXES
from flower_split.adapters.wrapping import check_fresh, check_silo_part
from flower_split.config.problems import raise_problems
from flower_split.config.sections import SplitConfig
from flower_split.config.tasks import MASKED_LM
from flower_split.delivery.pack import Pack
from flower_split.devices import autocast_dtype, resolve_device
from flower_split.errors import AdapterError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import (
    Cuts,
    Trunk,
    find_layers,
    layer_index,
    layers_path,
    load_client_model,
    load_skeleton,
    load_trunk,
    tables_of,
)
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.key_shapes import key_shape
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import TrunkStart
from flower_split.server.tickets import TicketBook
from flower_split.strategies.hosting.adapter_parts import AdapterParts, to_arrays, to_tensors
from flower_split.strategies.hosting.channel import advertised_address, bind_address, server_tls
from flower_split.strategies.hosting.invited_silo import InvitedSilo, RoundTerms
from flower_split.transport.invitation import MAX_STREAMS, DeliveryOffer, Invitation
from flower_split.transport.messages import SessionLimits

logger = logging.getLogger(__name__)

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
            sequences may be longer than the model's context.
    """

    def __init__(self, config: SplitConfig) -> None:
        self.config = config
        self.origin_run_id = ""
        """Names what silos keep from round to round: the run id of the first run, in a run that
        resumes another; empty for the run's own."""
        self._stack = ExitStack()
        self._tickets = TicketBook()

    def __enter__(self) -> Self:
        config = self.config
        raise_problems(method_problems(config), "the adapters' method")
        limits = SessionLimits(
            max_in_flight=config.trunk.max_in_flight,
            max_message_tokens=config.trunk.max_message_tokens,
            max_cached_tokens=config.trunk.max_cached_tokens,
        )
        self._tls = server_tls(config)  # before the model is loaded: it fails in no time
        with ExitStack() as stack:
            trunk = self._resolve()
            _check_prefix(trunk, self._whole_plan)
            pack = self._pack = self._make_pack(stack)
            self._engine = TrunkEngine(
                trunk,
                plan=None if self._mode == "frozen" else self._whole_plan,
                mode=self._mode,
                initial={name: self._initial[name] for name in self._trunk_names},
                wire=config.wire,
                optimizer=OptimizerSettings.of_training(
                    config.train, shared=config.trunk.adapters == "shared"
                ),
                limits=limits,
                keep_optimizer=config.train.keep_optimizer,
                batching=BatchSettings.of_trunk(config.trunk),
                pack="" if pack is None else pack.digest,
                dtype=config.model.dtype,
                shares_adapter=config.trunk.shares_adapter,
                prefix_tokens=self._before if self._whole_plan.method in PREFIXES else 0,
            )
            self._server = stack.enter_context(
                TrunkServer(
                    self._engine,
                    bind_address(config),
                    admit=self._tickets,
                    pack=pack,
                    limits=ServiceLimits(
                        session=limits,
                        max_sessions=config.trunk.max_sessions,
                        max_deliveries=config.trunk.max_sessions,
                        hidden_size=trunk.hidden_size,
                        reconnect_timeout=config.trunk.reconnect_timeout,
                    ),
                    tls=self._tls,
                    plaintext=config.tls.allow_plaintext,
                    advertise=advertised_address(config),
                )
            )
            _open_hosts.add(self)
            self._stack = stack.pop_all()
        logger.info(
            "the trunk listens on %s, %s", self.address, "TLS" if self.uses_tls else "no TLS"
        )
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
        return self._server.address

    @property
    def parameters(self) -> int:
        """Parameters of the uncut model."""
        return self._parameters

    @property
    def uses_tls(self) -> bool:
        """Whether silos connect over TLS."""
        return self._tls is not None

    @property
    def parts(self) -> AdapterParts:
        """Which adapter tensors the inner strategy sees, and which of them are the trunk's."""
        return self._parts

    @property
    def plan(self) -> AdapterPlan:
        """The plan of the adapter that a run yields: without the trunk's layers when frozen."""
        return self._plan

    def begin(self, arrays: ArrayRecord | None, *, any_ranks: bool = False) -> ArrayRecord:
        """What a run's inner strategy starts from; a `shared` trunk and all optimizers start anew.

        Args:
            arrays: The adapter to start from, with the trunk's part or, unless `federated`,
                without it; None makes PEFT's own initialisation from the configured seed.
            any_ranks: Whether modules may have other ranks than the run's, and folded factors.

        Raises:
            AdapterError: `arrays` is not such an adapter.
        """
        shared = {name: self._initial[name] for name in self._trunk_names}
        seen = {name: self._initial[name] for name in self._parts.shapes}
        if arrays is not None and self._mode == "shared" and shared.keys() <= arrays.keys():
            shared = to_tensors(ArrayRecord({name: arrays[name] for name in shared}))
            arrays = ArrayRecord({n: array for n, array in arrays.items() if n not in shared})
        if arrays is not None:
            arrays = self._parts.checked(arrays, any_ranks=any_ranks)
        self._engine.load_session_states(())
        if self._mode == "shared":
            self._engine.load_shared_state(shared)
        return to_arrays(seen) if arrays is None else arrays

    def adapter(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """Every tensor of the adapter that `plan` names, float32, the trunk's included.

        The modules' ranks are those of `arrays`; what was folded into the model comes at the end.
        """
        state = self._parts.to_state(arrays)
        if self._mode == "shared":
            state |= self._engine.shared_state()
        return {name: state.pop(name) for name in self._plan.names} | state

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
        silo, seconds = (run_id, node_id, terms.server_round), terms.seconds + TICKET_GRACE
        ticket = self._tickets.issue(*silo, terms.purpose, seconds=seconds)
        invitation = Invitation(
            address=self.address,
            ticket=ticket,
            purpose=terms.purpose,
            num_rounds=terms.num_rounds,
            origin_run_id=self.origin_run_id or str(run_id),
            last_training=terms.last_training,
            sample=sample,
            tls=self.uses_tls,
            ca="" if self._tls is None else self._tls.ca.decode("ascii", "ignore"),
            seconds=terms.seconds,
            offer=self._offer(*silo, seconds=seconds),
        )
        record = self._engine.prepare(ticket, start)
        return InvitedSilo(invitation, record, self._engine, self._tickets)

    def session_states(self) -> list[SiloState]:
        """The trunk's halves of what the next round can resume from."""
        return self._engine.session_states()

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """Resume from `states`, which `session_states` gave; after `begin`, which forgets all.

        Raises:
            StateError: a state is not one of this trunk's adapters; nothing is changed then.
        """
        self._engine.load_session_states(states)

    @property
    def waiting(self) -> int:
        """Passes that wait at the trunk now."""
        return self._engine.queue.waiting

    def note_connected(self, node_ids: Collection[int]) -> None:
        """The nodes that are connected now: no other may take one's name over."""
        self._engine.names.note_connected(node_ids)

    def _offer(
        self, run_id: int, node_id: int, server_round: int, *, seconds: float
    ) -> DeliveryOffer | None:
        """The model, and tickets to fetch it; None where silos have their own."""
        if self._pack is None:
            return None
        silo = run_id, node_id, server_round
        tickets = (
            self._tickets.issue(*silo, "deliver", seconds=seconds, number=number)
            for number in range(MAX_STREAMS)
        )
        return DeliveryOffer(pack=self._pack.digest, tickets=tuple(tickets))

    def _make_pack(self, stack: ExitStack) -> Pack | None:
        """The silos' share of the model, where they have none of their own."""
        if self.config.model.delivery != "server":
            return None
        pack = Pack(
            self.config.model.name,
            bottom_layers=self.config.split.bottom_layers,
            top_layers=self.config.split.top_layers,
            revision=self.config.model.revision,
            task=self.config.model.as_task(),
        )
        return stack.enter_context(pack)

    def _resolve(self) -> Trunk:
        """Load the trunk, and find out which adapter tensors there are and who holds them."""
        config, model = self.config, self.config.model
        task = model.as_task()
        skeleton = load_skeleton(model.name, revision=model.revision, task=task)
        self._before = config.peft.virtual_tokens
        wanted = config.train.max_length
        longest = tables_of(skeleton).longest(wanted, self._before)
        if longest < wanted:
            logger.info(
                "train.max-length %d is more than the model's context has room for: texts are cut "
                "off at %d tokens",
                wanted,
                longest,
            )
        self._parameters = sum(part.numel() for part in skeleton.parameters())
        self._whole_plan = plan = resolve_plan(skeleton, config.lora, config.peft)
        cuts = Cuts(
            bottom_layers=config.split.bottom_layers,
            top_layers=config.split.top_layers,
            num_layers=len(find_layers(skeleton)[1]),
        )
        check_silo_part(skeleton, plan, cuts)
        trunk = load_trunk(
            model.name,
            bottom_layers=cuts.bottom_layers,
            top_layers=cuts.top_layers,
            revision=model.revision,
            dtype=config.trunk.dtype or model.dtype,
            attention=model.attention,
            device=str(resolve_device(config.trunk.device, key="trunk.device")),
            quantization=model.quantization,
            task=task,
        )
        trunk.autocast = autocast_dtype(config.trunk.autocast)
        self._mode = config.trunk.adapters
        if model.task == MASKED_LM:  # other tasks train their heads, whatever is missing of them
            check_fresh(self._client_model(), plan.copies)
        self._initial = initial_adapter(
            skeleton, plan, config.lora, self._segments(trunk, plan), seed=config.seed
        )
        path = layers_path(skeleton)
        held = trunk.cuts.trunk_range
        self._trunk_names = tuple(n for n in plan.names if layer_index(n, path) in held)
        adapted = (*plan.modules, *plan.copies)
        silo_modules = tuple(n for n in adapted if layer_index(f"{n}.", path) not in held)
        silo_shapes = {n: shape for n, shape in plan.shapes if n not in self._trunk_names}
        if self._mode == "frozen":
            self._plan = plan.restricted(silo_modules, tuple(silo_shapes))
        else:
            self._plan = plan
        self._parts = (
            AdapterParts(dict(plan.shapes), self._trunk_names)
            if self._mode == "federated"
            else AdapterParts(silo_shapes, ())
        )
        return trunk

    def _segments(self, trunk: Trunk, plan: AdapterPlan) -> Iterator[nn.Module]:
        """What holds the weights that an adapter's initialisation may read, on the CPU."""
        if plan.is_plain:
            return  # it reads none
        yield trunk.model
        yield self._client_model()

    def _client_model(self) -> PreTrainedModel:
        """What a silo holds of the model, on the CPU."""
        model, split = self.config.model, self.config.split
        return load_client_model(
            model.name,
            bottom_layers=split.bottom_layers,
            top_layers=split.top_layers,
            revision=model.revision,
            dtype=model.dtype,
            attention=model.attention,
            task=model.as_task(),
        )


def _check_prefix(trunk: Trunk, plan: AdapterPlan) -> None:
    """Raise `AdapterError` where PEFT's prefix is none for the trunk's layers, nor the model's."""
    if plan.method not in PREFIXES:
        return
    made = int(dict(plan.options)["token_dim"])
    try:
        heads, size = key_shape(trunk)
    except ValueError as error:
        raise AdapterError(
            f"peft.type {plan.method}: the layers of this {trunk.config.model_type} model take no "
            f"prefix, {error}: use PROMPT_TUNING"
        ) from error
    if heads * size != made:
        raise AdapterError(
            f"peft.type {plan.method}: PEFT makes keys of {made} numbers for this "
            f"{trunk.config.model_type} model, whose layers keep {heads} x {size}: it does not "
            "work with the whole model either, use PROMPT_TUNING"
        )


def _close_all() -> None:
    for host in list(_open_hosts):
        host.close()


# Flower ends a stopped run's process by itself, and then no `finally` runs.
add_exit_handler(_close_all)
