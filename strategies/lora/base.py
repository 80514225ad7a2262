"""The base of strategies that aggregate LoRA adapters module by module, as updates with a scale.

A strategy of this kind is a stock Flower strategy to the ServerApp. The arrays that it starts from
and returns are the global adapter: LoRA factors named as PEFT names them, and, where it folds
something into the model, factors of the frozen adapter `folded` beside them. A silo tells rank and
alpha with its reply and gets tensors of its own rank and scale from then on; before that it gets
the global adapter and fits it to its own rank itself (`flower_split.client.AdapterExchange`).
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from flower_split.config.model import LoraSettings
from flower_split.errors import ConfigError, RoundError
from flower_split.lowrank import (
    CONTROL,
    Allowance,
    Factors,
    Instructions,
    Pair,
    Scaling,
    folded_name,
    part_of,
)
from flower_split.strategies.hosting.adapter_parts import to_arrays
from flower_split.strategies.lora.global_adapter import GlobalAdapter, ModuleResult, ModuleRound
from flower_split.strategies.lora.replies import SiloReply, admitted, fitting

MIXED = (
    "'flora' aggregates updates of any ranks exactly, 'flexlora' as nearly as one of the largest "
    "rank can, 'hetlora' zero-pads them"
)
"""Which strategies take silos of different ranks, for the text of an error."""

MIXED_ALPHAS = "every strategy for LoRA but 'scaffoldlora' brings alphas to one scale"
"""Which strategies take silos of different alphas, for the text of an error."""


def scaling_of(lora: LoraSettings) -> Scaling:
    """Rank, alpha and factor of the adapter that a run's settings describe."""
    return Scaling(r=lora.r, alpha=lora.alpha, rslora=lora.rslora)


_RENAMED = {"kept_parts": "personal_parts", "orders": "instructions"}
"""Methods that strategies used to override, and what they are called now."""


class LoraStrategy(FedAvg):
    """Base class; a strategy overrides `aggregate_module`, and says what is trained and personal.

    Args:
        lora: Rank, alpha and scaling of the global adapter, and so of `initial_arrays`.
        proximal_mu: Pull of the silos' steps towards what they received (FedProx, Li et al. 2020,
            arXiv:1812.06127); 0 for none.
        **flower: Arguments of Flower's `FedAvg`.
    """

    name: ClassVar[str] = ""
    """Value of `strategy.name` by which a run config chooses it."""
    mixed_ranks: ClassVar[bool] = False
    """Whether silos may have different ranks."""
    mixed_alphas: ClassVar[bool] = True
    """Whether silos may have different alphas."""
    folds: ClassVar[bool] = False
    """Whether it folds something into the model."""
    embeddings: ClassVar[bool] = True
    """Whether it can aggregate the adapters of embeddings, whose A is zero at the start, not B."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a method by an old name, which nothing would call.

        Raises:
            ConfigError: the class has one.
        """
        super().__init_subclass__(**arguments)
        for old, new in _RENAMED.items():
            if hasattr(cls, old):
                raise ConfigError(
                    f"{cls.__name__} overrides {old}, which is called {new} now, and nothing calls "
                    f"it by the old name: rename it to {new}"
                )

    def __init__(
        self, *, lora: LoraSettings | None = None, proximal_mu: float = 0.0, **flower: Any
    ) -> None:
        super().__init__(**flower)
        if proximal_mu < 0:
            raise ValueError(f"proximal_mu must be at least 0, not {proximal_mu}")
        self.lora = lora or LoraSettings()
        self.proximal_mu = proximal_mu
        self.silos: dict[int, Scaling] = {}
        """Scaling of every node whose last reply counted."""
        self.adapter = GlobalAdapter(ArrayRecord(), self.scaling.factor)
        """As the last message was made from."""

    @property
    def scaling(self) -> Scaling:
        """Scaling of the global adapter at the start; its factor stays the same for the run."""
        return scaling_of(self.lora)

    def trained_parts(self, server_round: int) -> frozenset[str]:
        """The factors that silos train in this round."""
        return frozenset("AB")

    def personal_parts(self) -> frozenset[str]:
        """The factors that never leave a silo."""
        return frozenset()

    @property
    def returns_what_it_sends(self) -> bool:
        """Whether a reply has the very tensors of its message, in every round."""
        trained = self.trained_parts(1) == self.trained_parts(2) == frozenset("AB")
        return trained and not self.folds and not self.personal_parts()

    def misfit(self, silos: Collection[Scaling]) -> str:
        """Why adapters so scaled cannot be aggregated; empty when they can."""
        ranks = {silo.r for silo in silos}
        if self.mixed_ranks or ranks <= {self.lora.r}:
            return ""
        return (
            f"silos have the ranks {sorted(ranks)}, and {self.name} aggregates only adapters that "
            f"all have lora.r {self.lora.r}: give all silos that rank, or choose another "
            f"strategy.name: {MIXED}"
        )

    @abstractmethod
    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The global adapter of one module after a round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """FedAvg's messages, each with tensors of the node's own rank and scale, and instructions.

        Raises:
            AdapterError: `arrays` has tensors that are no LoRA factors.
            ConfigError: `arrays` is an adapter that this strategy cannot aggregate.
        """
        self._begin(arrays)
        messages = super().configure_train(server_round, arrays, config, grid)
        return self._all_tailored(messages, server_round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages tailored as in `configure_train`."""
        self._begin(arrays)
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self._all_tailored(messages, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The global adapter after the round, float32.

        A reply that is not an adapter of the right modules is left out, with a warning.

        Raises:
            ConfigError: the silos' ranks or alphas are such that this strategy cannot aggregate
                them, and no round has counted yet. Later, only the silos that do not fit are left
                out.
            RoundError: replies came, and none counts.
        """
        valid, failed = self._check_and_log_replies(replies, is_train=True, validate=False)
        shapes = {
            name: tuple(self.adapter.state[name.removeprefix(CONTROL)].shape)
            for name in self.sent_names(server_round)
        }
        counted, refused = admitted(
            valid,
            shapes,
            weight_key=self.weighted_by_key,
            allowance=Allowance(scaling=self.scaling, max_r=self.lora.max_r),
        )
        if not self.silos and (problem := self.misfit({reply.scaling for reply in counted})):
            raise ConfigError(problem)
        counted, unfit = fitting(counted, self.misfit)
        refused |= unfit
        for node in [message.metadata.src_node_id for message in failed] + list(refused):
            # It may have lost its state, and gets everything anew.
            self.silos.pop(node, None)
        if not counted:
            if refused:
                raise RoundError(
                    f"round {server_round}: no reply can be aggregated: "
                    + "; ".join(sorted(set(refused.values())))
                )
            return None, None
        self.silos |= {reply.node_id: reply.scaling for reply in counted}
        state = self.aggregated(server_round, counted)
        contents = [reply.message.content for reply in counted]
        return to_arrays(state), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """FedAvg's; a node that failed gets everything anew with its next message."""
        replies = list(replies)
        for message in replies:
            if message.has_error():
                self.silos.pop(message.metadata.src_node_id, None)
        return super().aggregate_evaluate(server_round, replies)

    def instructions(self, server_round: int, node: Scaling | None) -> Instructions:
        """What a message tells a silo to do.

        Args:
            server_round: The round.
            node: The scaling of the silo; None while it is not known.
        """
        personal = [n for n in self.adapter.names if part_of(n) in self.personal_parts()]
        return Instructions(
            trains=self.trained_parts(server_round),
            personal=frozenset(personal),
            scale=(node or self.scaling).factor,
            proximal_mu=self.proximal_mu,
        )

    def sent_names(self, server_round: int) -> list[str]:
        """Names of the tensors that a reply of this round has."""
        sent = self.trained_parts(server_round) - self.personal_parts()
        return [name for name in self.adapter.names if part_of(name) in sent]

    def fitted(self, node: Scaling | None, server_round: int) -> dict[str, Tensor]:
        """The tensors of a message: everything, or what a silo of that scaling has use for."""
        if node is None:
            return dict(self.adapter.state)
        personal = self.instructions(server_round, node).personal
        return {n: tensor for n, tensor in self.adapter.fitted(node).items() if n not in personal}

    def aggregated(self, server_round: int, counted: Sequence[SiloReply]) -> dict[str, Tensor]:
        """The global adapter after the round, float32, in the order of the one before it."""
        total = sum(reply.weight for reply in counted)
        rank = max(self.lora.r, *(scaling.r for scaling in self.silos.values()))
        sent = set(self.sent_names(server_round))
        state, tail = dict[str, Tensor](), dict[str, Tensor]()
        for pair in self.adapter.pairs:
            before, folded = self.adapter.factors(pair), self.adapter.folded(pair)
            result = self.aggregate_module(
                ModuleRound(
                    pair=pair,
                    before=before.in_float64(),
                    folded=None if folded is None else folded.in_float64(),
                    updates=[self._update(reply, pair, sent) for reply in counted],
                    weights=[reply.weight / total for reply in counted],
                    rank=rank,
                    server_round=server_round,
                )
            )
            trained = result.trained.at_scale(before.scale).in_float32()
            state[pair.a] = trained.a.contiguous() if pair.a in sent else before.a
            state[pair.b] = trained.b.contiguous() if pair.b in sent else before.b
            beneath = folded if result.folded is None else result.folded.at_scale(1.0).in_float32()
            if beneath is not None:
                tail |= {folded_name(pair.a): beneath.a, folded_name(pair.b): beneath.b}
        return state | tail

    def _update(self, reply: SiloReply, pair: Pair, sent: set[str]) -> Factors:
        """A silo's adapter of one module at the global scale; what it did not send is global."""
        before = self.adapter.factors(pair)
        ratio = reply.scaling.factor / before.scale
        return Factors(
            a=reply.tensor(pair.a) if pair.a in sent else before.a.double(),
            b=reply.tensor(pair.b) * ratio if pair.b in sent else before.b.double(),
            scale=before.scale,
        )

    def _begin(self, arrays: ArrayRecord) -> None:
        self.adapter = GlobalAdapter(arrays, self.scaling.factor)
        for pair in self.adapter.pairs:
            rank = self.adapter.factors(pair).rank
            if pair.embedding and not self.embeddings:
                raise ConfigError(
                    f"{self.name} cannot train {pair.module}: the A of an embedding's adapter is "
                    "zero at the start, and would stay so. Leave embeddings out of the target "
                    "modules, or use strategy.name 'fedexlora'"
                )
            if not self.mixed_ranks and rank != self.lora.r:
                raise ConfigError(
                    f"the adapter to start from has rank {rank} in {pair.module}, and {self.name} "
                    f"was made with lora.r {self.lora.r}: make both the same"
                )

    def _all_tailored(self, messages: Iterable[Message], server_round: int) -> list[Message]:
        """Copies of `messages` with each node's own tensors and instructions.

        Nodes of one scaling share a record, as Flower's own strategies let all nodes do.
        """
        made: dict[Scaling | None, ArrayRecord] = {}
        tailored = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            node = self.silos.get(node_id)
            if node not in made:
                made[node] = to_arrays(self.fitted(node, server_round))
            content = RecordDict(dict(message.content.items()))
            content[self.arrayrecord_key] = made[node]
            config = dict(message.content.config_records[self.configrecord_key].items())
            config |= self.instructions(server_round, node).to_fields()
            content[self.configrecord_key] = ConfigRecord(config)
            tailored.append(
                Message(
                    content=content, dst_node_id=node_id, message_type=message.metadata.message_type
                )
            )
        return tailored
