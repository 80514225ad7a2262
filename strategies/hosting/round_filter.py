"""The round's filter: replies are compared with one another before anyone aggregates them.

It knows one round only, so that a run that is resumed goes on as it would have.
"""

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from flower_split.config.sections import StrategyConfig

logger = logging.getLogger(__name__)

FEWEST = 3
"""Replies from which on a norm is compared with the median: of two, neither is the usual one."""

Node = int


@dataclass(frozen=True, kw_only=True)
class RoundFilter:
    """What a round's replies may differ in; see `strategy.filter` and the keys beside it."""

    mode: str = "off"
    norm: float = 10.0
    """Largest norm, as a multiple of the round's median."""
    share: float = 0.5
    """Largest part of the round's total weight."""

    @classmethod
    def of(cls, settings: StrategyConfig) -> "RoundFilter":
        """The filter that a run's settings describe."""
        return cls(mode=settings.filter, norm=settings.filter_norm, share=settings.filter_share)

    @property
    def compares(self) -> bool:
        """Whether there is anything to do."""
        return self.mode != "off"

    @property
    def refuses(self) -> bool:
        """Whether what is found has consequences, beside a line in the log."""
        return self.mode == "refuse"

    def outlying(self, norms: Mapping[Node, Mapping[str, float]]) -> dict[Node, str]:
        """The replies with a norm above the bound, and that norm in words.

        Nothing is above it where there are fewer than `FEWEST` replies, or where the median is
        0, which is no scale to compare with: both are logged.

        Args:
            norms: Of every reply, by node and by what it is the norm of.
        """
        found: dict[Node, str] = {}
        for what in dict.fromkeys(what for held in norms.values() for what in held):
            values = {node: held[what] for node, held in norms.items() if what in held}
            median = statistics.median(values.values())
            if len(values) < FEWEST or not median:
                logger.warning(
                    "the norms of %s are not compared: there are %d, and their median is %g; "
                    "strategy.filter needs %d, and a median above 0",
                    what.replace("its", "every silo's"),
                    len(values),
                    median,
                    FEWEST,
                )
                continue
            for node, value in values.items():
                if value > self.norm * median:
                    found.setdefault(
                        node,
                        f"the norm of {what} is {value:.4g}, {value / median:.4g} times the "
                        f"round's median {median:.4g}, and strategy.filter-norm is {self.norm:g}: "
                        "look at the silo's data and learning rate, or raise strategy.filter-norm",
                    )
        return found

    def capped(self, weights: Mapping[Node, float]) -> dict[Node, float]:
        """The weights that are above the bound, and what they are lowered to; see `capped`."""
        return capped(weights, self.share)


def capped(weights: Mapping[Node, float], share: float) -> dict[Node, float]:
    """What must be lowered so that no weight is more than `share` of their sum, and to what.

    Lowering one raises the shares of all others, so that the bound t is that of the result: the
    largest t with t <= c sum(min(w_i, t)). With the weights in descending order and R_k the sum of
    all but the first k, t = c R_k / (1 - k c) for the smallest k with w_(k+1) <= t; those k are
    lowered to t. c is `share`, or 1 / n where that is more, as of n weights the largest has at
    least that share: then all become as large as the smallest.

    Computed in fractions, and rounded once.

    Args:
        weights: Above 0.
        share: As it is written in decimals; above 0 and at most 1.
    """
    if not weights:
        return {}
    exact = {node: Fraction(weight) for node, weight in weights.items()}
    most = max(Fraction(str(share)), Fraction(1, len(exact)))
    rest, limit = sum(exact.values(), Fraction()), Fraction()
    for lowered, weight in enumerate(sorted(exact.values(), reverse=True)):
        limit = most * rest / (1 - lowered * most)
        if weight <= limit:
            break
        rest -= weight
    return {node: float(limit) for node, weight in exact.items() if weight > limit}
