"""A measured federation: what every message carried, and how long the server aggregated."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from flower_split.apps.in_process import InProcessGrid, message_bytes
from flower_split.errors import DivergenceError
from flower_split.transport.messages import WireBytes

STREAM = tuple(f"bytes-{name}" for name in WireBytes())
"""Counters of what crossed between silo and trunk."""


@dataclass(kw_only=True)
class SiloRound:
    """What one silo exchanged in one round."""

    down: int = 0
    """Bytes of the training message."""
    up: int = 0
    """Bytes of its reply."""
    stream: int = 0
    """Payload bytes between silo and trunk while it trained, both ways."""
    evaluate_down: int = 0
    """Bytes of the evaluation message."""
    loss: float | None = None
    """On the silo's held-out examples, with the adapter that it has after the round."""
    held_out: int = 0
    """How many those are."""


@dataclass(kw_only=True)
class Measured:
    """What was found in a run."""

    rounds: dict[int, dict[int, SiloRound]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(SiloRound))
    )
    """By round, then by silo; round 0 is before the first."""
    server_seconds: list[float] = field(default_factory=list)
    """Of every aggregation."""


class MeasuredGrid(InProcessGrid):
    """An in-process grid whose messages are weighed, and losses noted.

    Raises:
        DivergenceError: as soon as a silo's training diverged.
        RuntimeError: as soon as a silo failed otherwise; in a comparison every reply must count.
    """

    measured: Measured

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """As the base class; weighs the messages."""
        messages = list(messages)
        self._rounds = {}
        for message in messages:
            if (server_round := _round_of(message)) is None:
                continue
            self._rounds[message.metadata.dst_node_id] = server_round
            one = self._silo(message.metadata.dst_node_id, server_round)
            size = message_bytes(message)
            if message.metadata.message_type == "train":
                one.down = size
            else:
                one.evaluate_down = size
        return super().push_messages(messages)

    def replies(self, reply: Message) -> list[Message]:
        """As the base class; weighs the reply."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            failure = f"silo {self.order.index(node)} failed: {reply.error.reason}"
            raise (DivergenceError if "DivergenceError" in failure else RuntimeError)(failure)
        if node in self._rounds:
            one = self._silo(node, self._rounds[node])
            (metrics,) = reply.content.metric_records.values()
            if reply.metadata.message_type == "train":
                one.up = message_bytes(reply)
                told = reply.content.config_records.get("split", ConfigRecord())
                one.stream = sum(int(str(told.get(hop, 0))) for hop in STREAM)
            else:
                one.loss = float(str(metrics["eval-loss"]))
                one.held_out = int(str(metrics["num-examples"]))
        return [reply]

    def _silo(self, node: int, server_round: int) -> SiloRound:
        return self.measured.rounds[server_round][self.order.index(node)]


def time_aggregation(strategy: Strategy, measured: Measured) -> None:
    """Have `strategy` note how long it aggregates adapters.

    It stays the strategy that it is: `SplitStrategy` asks its kind what it can do.
    """
    aggregate = strategy.aggregate_train

    def timed(
        server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        start = time.perf_counter()
        found = aggregate(server_round, replies)
        measured.server_seconds.append(time.perf_counter() - start)
        return found

    vars(strategy)["aggregate_train"] = timed


def _round_of(message: Message) -> int | None:
    """The round that a message belongs to; None for one that is no round's."""
    for config in message.content.config_records.values():
        if "server-round" in config:
            return int(str(config["server-round"]))
    return None
