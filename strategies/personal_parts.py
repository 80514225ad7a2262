"""`PersonalParts`: modules whose adapters never leave the silo, around any other strategy.

Personal layers are Arivazhagan et al. 2019, "Federated Learning with Personalization Layers",
arXiv:1912.00818.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flower_split.config.model import LoraSettings
from flower_split.errors import ConfigError
from flower_split.lowrank import Instructions, part_of
from flower_split.strategies.inner_message import adapter_and_config
from flower_split.strategies.lora.base import scaling_of


class PersonalParts(Strategy):
    """Hides the personal modules from `strategy`, which sees an adapter without them.

    Silos get the personal tensors once, as they are in the arrays that the run starts from, and
    resume from their own ones. In the aggregate they stay as they were at the start.

    Args:
        strategy: Any strategy of Flower's message API.
        modules: Names of modules, or dotted parts of names: `layers.3` is every module of that
            layer, `lm_head` the head, `*` stands for any one part of a name.
        lora: Rank, alpha and scaling of the global adapter.

    Raises:
        ConfigError: no module is named.
    """

    def __init__(
        self, strategy: Strategy, modules: Sequence[str], *, lora: LoraSettings | None = None
    ) -> None:
        if not modules or not all(modules):
            raise ConfigError(
                "strategy.personal names no module: give names such as 'layers.3' or 'lm_head'"
            )
        self.strategy = strategy
        self.modules = tuple(modules)
        self.scaling = scaling_of(lora or LoraSettings())
        self._known: set[int] = set()
        self._order: list[str] = []
        self._personal = ArrayRecord()

    def summary(self) -> None:
        """Log the inner strategy's own summary."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The inner strategy's messages, with personal tensors for nodes that have none yet.

        Raises:
            ConfigError: a name in `modules` is no module's, or all modules are personal.
            RoundError: a message is not one adapter and one config.
        """
        shared = self._shared(arrays)
        messages = self.strategy.configure_train(server_round, shared, config, grid)
        return [self._completed(message) for message in messages]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages completed as in `configure_train`."""
        shared = self._shared(arrays)
        messages = self.strategy.configure_evaluate(server_round, shared, config, grid)
        return [self._completed(message) for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's aggregate, completed by the personal tensors of the start."""
        replies = list(replies)
        self._note(replies, trained=True)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        everything = dict(arrays.items()) | dict(self._personal.items())
        added = [name for name in everything if name not in self._order]
        order = [name for name in self._order if name in everything] + added
        return ArrayRecord({name: everything[name] for name in order}), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's aggregate, which has no personal tensors in it."""
        replies = list(replies)
        self._note(replies, trained=False)
        return self.strategy.aggregate_evaluate(server_round, replies)

    def is_personal(self, name: str) -> bool:
        """Whether the tensor `name` never leaves a silo."""
        return any(_names(module, name) for module in self.modules)

    def _shared(self, arrays: ArrayRecord) -> ArrayRecord:
        self._order = list(arrays)
        unused = [m for m in self.modules if not any(_names(m, name) for name in arrays)]
        if unused:
            raise ConfigError(
                f"strategy.personal names {', '.join(map(repr, unused))}, and no adapted module "
                f"is called that; one is called {next(iter(arrays), '(none)')}"
            )
        personal = {n: array for n, array in arrays.items() if self.is_personal(n)}
        if len(personal) == len(arrays):
            raise ConfigError(
                "strategy.personal leaves nothing for "
                f"{type(self.strategy).__name__} to aggregate or compare: name fewer modules. "
                "Silos that share nothing at all are what baseline-alone is"
            )
        self._personal = ArrayRecord(personal)
        return ArrayRecord({n: array for n, array in arrays.items() if n not in personal})

    def _completed(self, message: Message) -> Message:
        content = RecordDict(dict(message.content.items()))
        (array_key, arrays), (config_key, config) = adapter_and_config(message)
        told = dict(config.items())
        instructions = Instructions.from_fields(told)
        told |= instructions.with_personal(self._personal.keys(), self.scaling.factor).to_fields()
        content[config_key] = ConfigRecord(told)
        node = message.metadata.dst_node_id
        if node not in self._known:
            content[array_key] = ArrayRecord(
                {**dict(arrays.items()), **self._rescaled(instructions)}
            )
        return Message(
            content=content, dst_node_id=node, message_type=message.metadata.message_type
        )

    def _rescaled(self, instructions: Instructions) -> dict[str, Array]:
        """The personal tensors at the scale of the message."""
        scale = instructions.scale or self.scaling.factor
        tensors = dict(self._personal.items())
        if scale != self.scaling.factor:
            ratio = np.float32(self.scaling.factor / scale)
            for name in tensors:
                if part_of(name) == "B":
                    tensors[name] = Array(tensors[name].numpy() * ratio)
        return tensors

    def _note(self, replies: Iterable[Message], *, trained: bool) -> None:
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._known.discard(node)  # it may have lost its state, and gets everything anew
            elif trained:
                self._known.add(node)


def _names(module: str, tensor: str) -> bool:
    """Whether `module`, a dotted part of a name, is in the name of `tensor`."""
    pattern = r"\.".join("[^.]+" if part == "*" else re.escape(part) for part in module.split("."))
    return re.search(rf"(?:^|\.){pattern}(?:\.|$)", tensor) is not None
