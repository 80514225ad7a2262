"""What each silo has told of its steps of DP-SGD, and whether another round would be too many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flower_split.config.sections import SplitConfig
from flower_split.privacy import SampledGaussians
from flower_split.reporting.counters import DP_ACCOUNT, DP_EXAMPLES, DP_STEPS
from flower_split.strategies.history import NodeRecord

_COUNTERS = (DP_ACCOUNT, DP_STEPS, DP_EXAMPLES)


class UncountedStepsError(Exception):
    """What a silo has released is not known."""


@dataclass(frozen=True, kw_only=True)
class SiloSteps:
    """What one silo has told, in its account of the run."""

    silo: str
    account: int
    steps: int
    """In the whole run."""
    examples: int
    """The fewest that any of them drew from."""
    in_round: int
    """Steps of the last round alone."""

    def release(self, config: SplitConfig, *, further: int = 0) -> SampledGaussians:
        """What the account adds up to, with further steps."""
        expected = config.train.batch_size * config.train.accumulation
        chance = min(1.0, expected / max(1, self.examples))
        return SampledGaussians(noise=config.dp.noise, chance=chance, times=self.steps + further)


def silo_steps(history: Sequence[NodeRecord], names: Mapping[int, str]) -> list[SiloSteps]:
    """What every silo that has trained told last.

    Raises:
        UncountedStepsError: one has told nothing, has lost its account, or failed in its last
            session, whose steps are in its own account alone.
    """
    last: dict[int, SiloSteps | None] = {}
    accounts: dict[int, int] = {}
    for record in history:
        if record.purpose != "train":
            continue
        node, silo = record.node_id, names.get(record.node_id, f"node {record.node_id}")
        if record.failure:
            last[node] = None
            continue
        told = {name: int(record.statistics.get(name, -1)) for name in _COUNTERS}
        if min(told.values()) < 0 or not told[DP_EXAMPLES]:
            raise UncountedStepsError(f"silo {silo} has not told how many steps it took")
        if accounts.setdefault(node, told[DP_ACCOUNT]) != told[DP_ACCOUNT]:
            raise UncountedStepsError(
                f"silo {silo} has lost its account of the steps it took (keep its state-dir "
                "between rounds)"
            )
        last[node] = SiloSteps(
            silo=silo,
            account=told[DP_ACCOUNT],
            steps=told[DP_STEPS],
            examples=told[DP_EXAMPLES],
            in_round=int(record.statistics.get("optimizer-steps", 0)),
        )
    for node, found in last.items():
        if found is None:
            raise UncountedStepsError(
                f"the last session of silo {names.get(node, node)} failed, and the steps taken in "
                "it are counted in the silo's own account alone"
            )
    return [found for found in last.values() if found is not None]


def spent(config: SplitConfig, history: Sequence[NodeRecord]) -> str:
    """Why no further round is made: another would take a silo beyond `dp.max-epsilon`; or empty.

    A silo that has told nothing is not counted here: it refuses such a round by itself.
    """
    most, delta = config.dp.max_epsilon, config.dp.delta
    if not most:
        return ""
    names = {record.node_id: record.silo for record in history if record.silo}
    latest = {r.node_id: r for r in history if r.purpose == "train" and not r.failure}
    try:
        found = silo_steps(list(latest.values()), names)
    except UncountedStepsError:
        return ""
    for one in found:
        after = one.release(config, further=one.in_round).epsilon(delta)
        if after > most:
            now = one.release(config).epsilon(delta)
            return (
                f"ε of silo {one.silo} is {now:.3g}, and another round of {one.in_round} "
                f"steps would take it to {after:.3g}, beyond {most:g} (dp.max-epsilon)"
            )
    return ""
