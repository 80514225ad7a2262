"""Alone: every silo resumes from its own adapters and nothing is averaged.

The baseline that federated training is compared with: the same silos, data and steps, without
each other.
"""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flower_split.config.model import LoraSettings
from flower_split.lowrank import LORA_RECORD, Instructions, Scaling, scaling_from_fields
from flower_split.strategies.lora.base import scaling_of


class Alone(FedAvg):
    """Keeps one set of arrays for each node; its aggregate is None, as there is none.

    Args:
        min_nodes: Nodes that must be connected.
        fraction_evaluate: Share of the nodes that evaluate after a round.
        lora: Rank, alpha and scaling of the adapter that all start from, for nodes of other ranks
            and alphas; without it all have the same.
    """

    def __init__(
        self, *, min_nodes: int, fraction_evaluate: float = 1.0, lora: LoraSettings | None = None
    ) -> None:
        super().__init__(
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_nodes,
            min_evaluate_nodes=min_nodes,
            min_available_nodes=min_nodes,
        )
        self.arrays_by_node: dict[int, ArrayRecord] = {}
        self.mixed_ranks = self.mixed_alphas = lora is not None
        self._start = None if lora is None else scaling_of(lora)
        self._scaling_by_node: dict[int, Scaling] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message a node, with the node's own arrays; `arrays` for one that has none yet."""
        return self._individual(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """As `configure_train`: every node evaluates its own arrays."""
        return self._individual(super().configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep every node's arrays; averages the metrics only."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        for reply in valid:
            node = reply.metadata.src_node_id
            self.arrays_by_node[node] = next(iter(reply.content.array_records.values()))
            if (told := reply.content.config_records.get(LORA_RECORD)) is not None:
                self._scaling_by_node[node] = scaling_from_fields(dict(told.items()))
        contents = [reply.content for reply in valid]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None
        return None, metrics

    def _individual(self, messages: Iterable[Message]) -> list[Message]:
        individual = []
        for message in messages:
            content = RecordDict(dict(message.content.items()))
            node = message.metadata.dst_node_id
            if node in self.arrays_by_node:
                content[self.arrayrecord_key] = self.arrays_by_node[node]
            if self._start is not None:
                instructions = Instructions(
                    scale=self._scaling_by_node.get(node, self._start).factor
                )
                told = dict(message.content.config_records[self.configrecord_key].items())
                content[self.configrecord_key] = ConfigRecord({**told, **instructions.to_fields()})
            individual.append(
                Message(
                    content=content,
                    dst_node_id=node,
                    message_type=message.metadata.message_type,
                )
            )
        return individual
