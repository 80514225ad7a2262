"""What a run may say of its privacy: nothing that does not follow from what was done."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.serverapp.strategy import Strategy

from flower_split.apps.results import silo_names
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import UPWARD_HOPS, WireConfig
from flower_split.errors import ConfigError
from flower_split.privacy import Gaussians, Statement, accountant_name
from flower_split.privacy.accountant import SAMPLED
from flower_split.privacy.statement import figures
from flower_split.reporting.counters import DP_EXAMPLES, DP_STEPS, NOISE_ACCOUNT, noisy_rows
from flower_split.strategies import NodeRecord, SplitResult
from flower_split.strategies.central_privacy import CentralPrivacy
from flower_split.strategies.inner import central_privacy
from flower_split.strategies.silo_steps import SiloSteps, UncountedStepsError, silo_steps

_NOT_COVERED = (
    "Lengths and attention masks, gradient norms, adapters and metrics leave without noise and are "
    "not covered, so that against whoever sees them too this is an empirical mitigation, of which "
    "only an audit tells the effect."
)

_LARGE_DELTA = (
    "δ is not below 1 over the number of examples, with which giving whole examples away would be "
    "allowed: this is no meaningful guarantee, and dp.delta has to be lower. "
)
_WHOSE_NOISE = (
    "Each silo draws the noise on its own part, and whoever runs the trunk that on the trunk's "
    "part, and is trusted to do so, to tell each example's norm there, and to weigh it as it is "
    "told; the silo's own part keeps its bound and its noise whatever the trunk does. "
)
_NOT_BY_EXAMPLE = (
    "Nothing is promised against whoever runs the trunk, who sees activations, their gradients and "
    "each example's norm. Losses and other metrics, what is chosen by them (the best round, early "
    "stopping), held-out data and the number of a silo's examples are not covered."
)


def statements(
    config: SplitConfig, results: Sequence[SplitResult], inner: Strategy
) -> list[Statement]:
    """Every statement that a run may make.

    Args:
        config: The run's.
        results: Of the run, and of its baseline where it has one.
        inner: The strategy that aggregated.
    """
    private = central_privacy(inner)
    found = [] if private is None else [central(private)]
    if config.dp.noise:
        found.append(by_example(config, results))
    return [*found, cut_noise(config, results)] if config.wire.hides else found


def central(private: CentralPrivacy) -> Statement:
    """That of central differential privacy."""
    epsilon, times = private.epsilon(), private.releases
    return Statement(
        kind="central",
        sentence=(
            f"Central differential privacy: {figures(epsilon, private.delta)} for all data of any "
            f"one silo, replaced by any other, in the adapters that were published in {times} "
            f"rounds; noise of {private.noise_multiplier:g} times the clipping norm "
            f"{private.clipping_norm:g} on the sum of the silos' updates, no amplification by "
            "sampling. It trusts whoever runs the server, who sees every silo's adapter, "
            "activations and gradients. Losses and other metrics are not covered."
        ),
        epsilon=epsilon,
        delta=private.delta,
        accountant=accountant_name(),
        releases={"rounds": times},
    )


def by_example(config: SplitConfig, results: Sequence[SplitResult]) -> Statement:
    """That of DP-SGD, for the silo of which most was released."""
    dp = config.dp
    counted: dict[int, SiloSteps] = {}
    try:
        for result in results:
            for one in silo_steps(result.history, silo_names(result.history)):
                before = counted.get(one.account)
                if before is None or one.steps > before.steps:
                    counted[one.account] = one
        found = [(one.release(config).epsilon(dp.delta), one) for one in _of_silos(counted)]
        if not found:
            raise UncountedStepsError("no silo has told how many steps it took")
    except (UncountedStepsError, ConfigError) as error:
        return Statement(
            kind="dp-sgd",
            sentence=f"DP-SGD on the adapters: no formal guarantee, because {error}.",
        )
    epsilon, most = max(found, key=lambda one: one[0])
    chance = most.release(config).chance
    trunk = "" if config.trunk.adapters == "frozen" else _WHOSE_NOISE
    large = _LARGE_DELTA if dp.delta * most.examples >= 1 else ""
    return Statement(
        kind="dp-sgd",
        sentence=(
            f"DP-SGD on the adapters: {figures(epsilon, dp.delta)} for any one example that a "
            "silo trains on, present or absent, in the adapters that the silo released over the "
            f"whole run; the most, of silo {most.silo}: {most.steps} steps, each of which drew "
            f"every one of {most.examples} examples by itself with a chance of {chance:.3g} "
            f"(Poisson sampling), with noise of {dp.noise:g} times the norm {dp.clip:g} to which "
            f"examples were clipped. {large}{trunk}{_NOT_BY_EXAMPLE}"
        ),
        epsilon=epsilon,
        delta=dp.delta,
        accountant=accountant_name(SAMPLED),
        releases={DP_STEPS: most.steps, DP_EXAMPLES: most.examples},
    )


def _of_silos(counted: Mapping[int, SiloSteps]) -> list[SiloSteps]:
    """Every silo's steps, over all of its accounts."""
    silos: dict[str, SiloSteps] = {}
    for one in counted.values():
        held = silos.get(one.silo)
        silos[one.silo] = (
            one
            if held is None
            else replace(
                one, steps=one.steps + held.steps, examples=min(one.examples, held.examples)
            )
        )
    return list(silos.values())


def cut_noise(config: SplitConfig, results: Sequence[SplitResult]) -> Statement:
    """That of the noise on h1 and g2, for the silo of which most has left."""
    counted: dict[int, tuple[str, dict[str, int]]] = {}
    try:
        for result in results:
            _count(result.history, counted)
        if not counted:
            raise _UncountedError("no silo has told what left it")
        most = _most_revealing(config.wire, counted)
        epsilon = most[0].epsilon(config.privacy_delta)
    except (_UncountedError, ConfigError) as error:
        return Statement(
            kind="cut-noise", sentence=f"Noise at the cuts: no formal guarantee, because {error}."
        )
    _, silo, rows = most
    told = " and ".join(f"{rows[hop]} token rows of {hop}" for hop in UPWARD_HOPS)
    return Statement(
        kind="cut-noise",
        sentence=(
            f"Noise at the cuts: {figures(epsilon, config.privacy_delta)} for h1 and g2 alone, "
            "over the whole run, for each record and for all of a silo's texts together, replaced "
            f"by others of the same lengths; most has left silo {silo}, {told}. {_NOT_COVERED}"
        ),
        epsilon=epsilon,
        delta=config.privacy_delta,
        accountant=accountant_name(),
        releases={noisy_rows(hop): rows[hop] for hop in UPWARD_HOPS},
    )


class _UncountedError(Exception):
    """What has left is not known, or had no noise."""


def _count(history: Sequence[NodeRecord], counted: dict[int, tuple[str, dict[str, int]]]) -> None:
    """Add to `counted`, by silo, what its last reply told.

    A silo's adapter carries every text into all rows that come later, so that all of a silo's rows
    count for every one of its records.
    """
    names = silo_names(history)
    last: dict[int, dict[str, int]] = {}
    accounts: dict[int, int] = {}
    for record in history:
        silo = names[record.node_id]
        if record.failure:
            last[record.node_id] = {}
            continue
        told = {name: int(record.statistics.get(name, -1)) for name in _COUNTERS}
        if min(told.values()) < 0:
            raise _UncountedError(f"silo {silo} has not told what left it")
        if accounts.setdefault(record.node_id, told[NOISE_ACCOUNT]) != told[NOISE_ACCOUNT]:
            raise _UncountedError(
                f"silo {silo} has lost its account of what left it (keep its state-dir between "
                "rounds)"
            )
        last[record.node_id] = {hop: told[noisy_rows(hop)] for hop in UPWARD_HOPS}
    for node, rows in last.items():
        if not rows:
            raise _UncountedError(
                f"the last session of silo {names[node]} failed, and what left in it is counted "
                "in the silo's own log alone"
            )
        key, (silo, before) = accounts[node], counted.get(accounts[node], ("", {}))
        counted[key] = silo or names[node], {h: max(n, before.get(h, 0)) for h, n in rows.items()}


_COUNTERS = (NOISE_ACCOUNT, *(noisy_rows(hop) for hop in UPWARD_HOPS))


def _most_revealing(
    wire: WireConfig, counted: dict[int, tuple[str, dict[str, int]]]
) -> tuple[Gaussians, str, dict[str, int]]:
    silos: dict[str, dict[str, int]] = {}
    for silo, rows in counted.values():
        held = silos.setdefault(silo, dict.fromkeys(UPWARD_HOPS, 0))
        for hop, count in rows.items():
            held[hop] += count
    found = [(_released(wire, rows), silo, rows) for silo, rows in silos.items()]
    return max(found, key=lambda one: one[0].mu_squared)


def _released(wire: WireConfig, rows: dict[str, int]) -> Gaussians:
    all_of_it = Gaussians()
    for hop, count in rows.items():
        if count and not wire.noise_of(hop):
            raise _UncountedError(f"{hop} left without noise (wire.{hop}-noise is 0)")
        if count:
            # Two rows of at most C are at most 2 C apart.
            all_of_it = all_of_it.released(
                sensitivity=2.0, deviation=wire.noise_of(hop), times=count
            )
    return all_of_it
