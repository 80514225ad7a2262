"""One run of `SplitStrategy`: what stays the same over its rounds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flower_split.config.sections import SplitConfig
from flower_split.config.seeds import derive_seed
from flower_split.strategies.checkpoints.run_checkpoints import RunCheckpoints
from flower_split.strategies.history import SplitResult
from flower_split.strategies.hosting.exchange import wait_for_nodes
from flower_split.strategies.hosting.host import TrunkHost
from flower_split.strategies.hosting.roster import OrderedGrid, Roster, drawn_from
from flower_split.strategies.inner import least_nodes, order_matters
from flower_split.transport.messages import Purpose

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
ShouldStop = Callable[[int, SplitResult], bool]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parties and settings of one `SplitStrategy.start`."""

    config: SplitConfig
    inner: Strategy
    grid: Grid
    host: TrunkHost
    checkpoints: RunCheckpoints
    num_rounds: int
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None
    roster: Roster = field(default_factory=Roster)

    def wait(self, purpose: Purpose) -> list[int]:
        """The connected nodes, once they are enough; with their names where those matter.

        Raises:
            RoundError: they did not become enough in time.
        """
        nodes = wait_for_nodes(self.grid, least_nodes(self.inner, purpose), self.timeout)
        if order_matters(self.config, self.inner):
            self.roster.ask(self.grid, nodes, self.timeout)
        return nodes

    def read_roster(self) -> Roster:
        """The names of all connected nodes that tell them.

        Raises:
            RoundError: too few nodes connected in time.
        """
        nodes = wait_for_nodes(self.grid, least_nodes(self.inner, "train"), self.timeout)
        self.roster.ask(self.grid, nodes, self.timeout)
        return self.roster

    @contextmanager
    def drawing(self, purpose: Purpose, server_round: int) -> Iterator[Grid]:
        """The grid out of which the inner strategy draws the same silos whenever it does so."""
        with drawn_from(derive_seed(self.config.seed, "silos", purpose, server_round)):
            yield OrderedGrid(self.grid, self.roster.names)
