"""The rounds: who aggregates, from whom, what is checkpointed, and when the run stops early."""

from dataclasses import dataclass, field

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.errors import ConfigError

DIRECTIONS = ("lowest", "highest")
FILTERS = ("off", "warn", "refuse")
CENTRAL_STRATEGIES = ("fedavg", "fedprox")
"""Names of strategies whose aggregate is a mean, as central differential privacy needs it."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Which Flower strategy aggregates, and with which options."""

    name: str = "fedavg"
    """A name of `flower_split.strategies.INNER_STRATEGIES`."""
    fraction_train: float = 1.0
    """Share of the silos that train in a round."""
    fraction_evaluate: float = 1.0
    """Share of the silos that evaluate after a round; 0 skips evaluation."""
    min_nodes: int = 2
    """Silos that must be connected before a round starts."""
    min_replies: int = 1
    """Silos whose training must count in a round; with fewer, the run ends."""
    personal: tuple[str, ...] = ()
    """Modules whose adapters never leave the silo: names, or dotted parts of names such as
    `layers.3`; empty for none."""
    filter: str = "off"
    """What becomes of replies beyond `filter_norm` and `filter_share`: one of `FILTERS`. `warn`
    logs them; `refuse` leaves out a reply whose norm is beyond, and lowers a weight that is; see
    [security.md](security.md)."""
    filter_norm: float = 10.0
    """Largest norm of a silo's update, as a multiple of the median of the round's silos. The
    default leaves room for silos with ten times as much data as the others."""
    filter_share: float = 0.5
    """Largest share that a silo's number of examples may have in the weights of a round; 1 for any.
    With the default no silo outweighs all others together."""
    dp_noise: float = 0.0
    """Central differential privacy: deviation of the noise on the sum of the silos' updates, as a
    multiple of `dp_clip`; 0 for none. See [privacy.md](privacy.md)."""
    dp_clip: float = 0.0
    """Largest L2 norm of a silo's update, to which it is clipped; 0 where `dp_noise` is."""
    dp_delta: float = 1e-5
    """δ of central differential privacy: far below 1 over the number of silos."""
    dp_max_epsilon: float = 0.0
    """ε beyond which no round is published: the run ends before it; 0 for any."""
    options: dict[str, float] = field(default_factory=dict)
    """Further arguments of the strategy (`strategy.eta`, `strategy.tau`, …)."""

    def __post_init__(self) -> None:
        in_range("strategy.fraction-train", self.fraction_train, 0.0, 1.0, open_low=True)
        in_range("strategy.fraction-evaluate", self.fraction_evaluate, 0.0, 1.0)
        at_least("strategy.min-nodes", self.min_nodes, 1)
        at_least("strategy.min-replies", self.min_replies, 1)
        one_of("strategy.filter", self.filter, FILTERS)
        in_range("strategy.filter-norm", self.filter_norm, 1.0, 1e9)
        in_range("strategy.filter-share", self.filter_share, 0.0, 1.0, open_low=True)
        in_range("strategy.dp-noise", self.dp_noise, 0.0, 1e6)
        in_range("strategy.dp-clip", self.dp_clip, 0.0, 1e9)
        in_range("strategy.dp-delta", self.dp_delta, 0.0, 0.1, open_low=True)
        in_range("strategy.dp-max-epsilon", self.dp_max_epsilon, 0.0, 1e9)
        if (self.dp_noise > 0) != (self.dp_clip > 0):
            raise ConfigError(
                "central differential privacy needs both strategy.dp-noise and strategy.dp-clip: "
                f"they are {self.dp_noise:g} and {self.dp_clip:g}"
            )
        if self.dp_max_epsilon and not self.dp_noise:
            raise ConfigError(
                "strategy.dp-max-epsilon bounds the ε of central differential privacy, and "
                "strategy.dp-noise is 0: set it, and strategy.dp-clip"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The run's state, saved after every round in the folder `checkpoints` of `output_dir`."""

    keep: int = 2
    """Last checkpoints that are kept; 0 writes none, as an empty `output_dir` does."""
    keep_best: bool = False
    """Whether the checkpoint of the best round, by `best_metric`, is kept besides."""
    fallback: bool = False
    """Whether a run that is resumed may begin from the checkpoint before the last one where the
    last is damaged, and train that round again; otherwise it is refused."""

    def __post_init__(self) -> None:
        at_least("checkpoint.keep", self.keep, 0)


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """An end before the last round, when the silos' held-out data shows no more progress."""

    patience: int = 0
    """Rounds in a row without a better `best_metric` after which the run ends; 0 runs them all."""
    min_delta: float = 0.0
    """By how much `best_metric` must be better than the best before, to count as progress."""

    def __post_init__(self) -> None:
        at_least("early-stop.patience", self.patience, 0)
        in_range("early-stop.min-delta", self.min_delta, 0.0, 1e9)
