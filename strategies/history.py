"""The history of a run: what every silo reported in every round, and what became of the adapter."""

from dataclasses import dataclass, field

from flwr.serverapp.strategy import Result
from torch import Tensor

Metric = int | float | list[int] | list[float]
Statistic = int | float


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What came of one silo in one exchange of a round."""

    server_round: int
    """0 is the evaluation before the first round."""
    purpose: str
    """`train` or `evaluate`."""
    node_id: int
    silo: str = ""
    """The silo's name at the trunk, its partition id in a simulation; empty when it did not
    answer."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    """As in the reply's MetricRecord; empty when the silo failed."""
    statistics: dict[str, Statistic] = field(default_factory=dict)
    """What the session cost: counters of `flower_split.reporting.counters`, checked."""
    failure: str = ""
    """Why the silo's reply does not count; empty when it does."""


@dataclass(repr=False)
class SplitResult(Result):
    """Flower's `Result`, with what every silo reported and the adapter of the uncut model."""

    history: list[NodeRecord] = field(default_factory=list)
    """Every record of the run, round by round."""
    adapter: dict[str, Tensor] = field(default_factory=dict)
    """Every tensor of the adapter, float32, named and ordered as in the uncut model; with a
    `shared` trunk including the trunk's part, which `arrays` does not have."""
    samples: dict[int, str] = field(default_factory=dict)
    """Continuation of the sample prompt by round."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Wall-clock time of every round."""

    def of(self, purpose: str, server_round: int) -> list[NodeRecord]:
        """The records of one round, silos that failed included."""
        return [
            record
            for record in self.history
            if (record.purpose, record.server_round) == (purpose, server_round)
        ]

    @property
    def last_round(self) -> int:
        """The last round that was trained; 0 before the first."""
        return max((r.server_round for r in self.history if r.purpose == "train"), default=0)
