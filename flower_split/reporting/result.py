"""The result of a run, as plain data: every round's metrics by silo, and what the run cost."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from flower_split.config.silo_order import silo_order

Value = str | int | float | bool | list[int] | list[float]
Metrics = Mapping[str, Value]
Counters = Mapping[str, int | float]

TRAIN_LOSS = "train-loss"
"""Metric of a training reply: mean cross-entropy of a target token, in nats."""
EVAL_LOSS = "eval-loss"
"""Metric of an evaluation reply: the same mean over held-out text."""

_REPORTED = ("flower-split", "flwr", "torch", "transformers", "peft", "grpcio", "numpy")


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """One round; round 0 is the evaluation before the first."""

    server_round: int
    train: Mapping[str, Metrics] = field(default_factory=dict)
    """By silo: what it reported of its training."""
    evaluate: Mapping[str, Metrics] = field(default_factory=dict)
    """By silo: what it reported of its held-out data, after the round's aggregation."""
    aggregated: Metrics = field(default_factory=dict)
    """Over the silos, as the inner strategy weighs them."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """By silo: why its reply did not count."""
    seconds: float = 0.0
    """Wall-clock time of the round."""
    train_counters: Mapping[str, Counters] = field(default_factory=dict)
    """By silo: what its training cost, in the words of `reporting.counters`."""
    evaluate_counters: Mapping[str, Counters] = field(default_factory=dict)
    """By silo: what its evaluation cost."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything that is reported of one run."""

    rounds: Sequence[RoundResult]
    alone: Sequence[RoundResult] = ()
    """The baseline: as many rounds in which every silo trained without the others."""
    wire_bytes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By silo, then by hop (`h1`, `h2`, `g2`, `g1`, and `context`: attention masks and position
    ids): payload bytes of the run, as encoded."""
    delivery_bytes: Mapping[str, int] = field(default_factory=dict)
    """By silo: what it downloaded of the model in the run, where the server delivers it."""
    parameter_share: Mapping[str, float] = field(default_factory=dict)
    """By silo: the part of the model's parameters that it held, 0 to 1."""
    samples: Mapping[int, str] = field(default_factory=dict)
    """By round: text generated through the split."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The run config, key by key."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version by package or platform, see `installed_versions`."""
    seconds: float = 0.0
    """Wall-clock time of the run."""
    failure: str = ""
    """Why the run ended before its last round; empty when it did not."""
    state: str = ""
    """`running`, `completed` or `failed`; a run that was killed is left `running`. Empty in results
    of versions that wrote them at the end only."""
    privacy: Sequence[Mapping[str, object]] = ()
    """What may be said of the run's privacy, see `flower_split.privacy.Statement`; nothing where
    nothing was done for it."""
    prompt_format: Mapping[str, str] = field(default_factory=dict)
    """How fields of the examples became the text that the model reads: `template`, and of causal
    models `prompt` and `separator`."""

    @property
    def silos(self) -> list[str]:
        """Every silo that reported anything, or failed to, in the order of their names."""
        names = {
            name
            for one in (*self.rounds, *self.alone)
            for held in (one.train, one.evaluate, one.failures)
            for name in held
        } | {*self.wire_bytes, *self.parameter_share}
        return sorted(names, key=silo_order)

    def losses(
        self, silo: str, *, evaluate: bool = True, alone: bool = False
    ) -> list[tuple[int, float]]:
        """One silo's loss by round; rounds in which it reported none, or no finite one, are out."""
        found = []
        for one in self.alone if alone else self.rounds:
            reported = (one.evaluate if evaluate else one.train).get(silo, {})
            loss = reported.get(EVAL_LOSS if evaluate else TRAIN_LOSS)
            if isinstance(loss, (int, float)) and math.isfinite(loss):
                found.append((one.server_round, float(loss)))
        return found


def installed_versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the packages that a run depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
