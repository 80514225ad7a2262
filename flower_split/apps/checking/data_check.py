"""The silos' data: read and tokenised as a run would, or a sample of it, before one starts."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flower_split.apps.checking.advice import REAL
from flower_split.apps.checking.findings import Findings
from flower_split.client.node_config import NodeConfig
from flower_split.client.rendering import render_examples
from flower_split.client.silo_data import SiloBatches, silo_batches
from flower_split.config.sections import SplitConfig
from flower_split.data.callables import is_reference
from flower_split.errors import FlowerSplitError
from flower_split.privacy import SampledGaussians
from flower_split.privacy.statement import figures

TOPIC, DP = "data", "dp"
OWN = "this"
"""In place of the name of a silo that is not one of several."""
SAMPLE = 200
"""Examples of a silo that are tokenised; all of them are read."""
MOST_SILOS = 8
"""Silos whose data is looked at."""
_NUMBER = re.compile(r", (line|row|example) [0-9]+")
MANY = 0.2
"""Share of cut-off examples that is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Whose:
    """Whose data is looked at."""

    silos: int = 2
    """Parts of a data set that all silos share."""
    path: str = ""
    """One silo's own data instead, as `data-path` in its node config."""
    own: Mapping[str, str] = field(default_factory=dict)
    """The data of every silo by its name instead, as `data-path`."""

    def nodes(self, config: SplitConfig) -> list[NodeConfig]:
        """A node config for every silo, or for the first ones."""
        if self.own:
            return [NodeConfig(silo=silo, data_path=path) for silo, path in self.own.items()]
        if self.path:
            own = self.path if is_reference(self.path) else str(Path(self.path).resolve())
            return [NodeConfig(data_path=own)]
        if config.data.partitioner == "none" and not is_reference(config.data.path):
            return [NodeConfig()]
        return [
            NodeConfig(partition_id=number, num_partitions=self.silos)
            for number in range(min(self.silos, MOST_SILOS))
        ]


def look_at_data(
    config: SplitConfig, whose: Whose, findings: Findings, *, examples: int, parameters: int
) -> int:
    """Note what is to be said of the data, each problem once with the silos that have it.

    Returns the tokens of the longest sequence that was seen, 0 where none was.

    Args:
        config: The run's.
        whose: Whose data.
        findings: Takes them.
        examples: How many rendered examples of the first silo go to `findings.examples`.
        parameters: Of the model; a toy's texts may be cut off.
    """
    if not (whose.own or whose.path or config.data.path):
        findings.warn(
            TOPIC,
            "data.path is empty: every silo's operator must name its data with data-path in the "
            "node config; --data PATH checks such a file here",
        )
        return 0
    limit = min(config.data.max_examples or SAMPLE, SAMPLE)
    sampled = replace(config, data=replace(config.data, max_examples=limit))
    failed: dict[str, list[str]] = {}
    told_first: dict[str, str] = {}  # parts of a file meet it in other lines
    sizes = dict[str, SiloBatches]()
    for number, node in enumerate(whose.nodes(config)):
        name = node.name(number) if node.partition or node.silo else OWN
        try:
            sizes[name] = silo_batches(sampled, node)
        except FlowerSplitError as error:
            text = told_first.setdefault(_NUMBER.sub("", str(error)), str(error))
            failed.setdefault(text, []).append(name)
    told = {one.text for one in findings.problems}
    for text, names in failed.items():
        if text not in told:  # the model, of which the tokenizer is
            findings.refuse(TOPIC, f"{_silos(names)}: {text}")
    cut_off = dict[str, float]()
    for name, found in sizes.items():
        cut_off[name] = _tell(name, found, config, findings)
        if config.dp.noise:
            with findings.looking(DP):
                _look_at_draws(name, found, config, findings)
    most = [name for name, share in cut_off.items() if share > MANY]
    if most and parameters >= REAL:
        findings.warn(
            TOPIC,
            f"{_silos(most)}: up to {max(cut_off.values()):.0%} of the examples are cut off at "
            f"train.max-length {config.train.max_length}: raise it where memory allows",
        )
    if sizes and examples:
        first = next(iter(sizes.values()))
        shown = render_examples(first.silo, first.tokenizer, examples)
        findings.examples += [str(one) for one in shown]
    return max((_longest(found) for found in sizes.values()), default=0)


def _longest(found: SiloBatches) -> int:
    return max(len(ids) for ids in found.silo.train.sequences)


def _tell(name: str, found: SiloBatches, config: SplitConfig, findings: Findings) -> float:
    """Note a silo's data; returns the share of its examples that are cut off."""
    lengths = [len(ids) for ids in found.silo.train.sequences]
    most, train = config.train.max_length, found.num_train
    share = sum(length >= most for length in lengths) / train
    own, chosen = found.summary.own, config.data.max_examples
    drawn = found.summary.kept < own and not 0 < chosen <= SAMPLE
    sampled = f" of a sample of {SAMPLE} of its {own:,} rows" if drawn else ""
    findings.ok(
        TOPIC,
        f"{_silos([name])}: {train} examples to learn from{sampled}, {found.num_held_out} held out;"
        f" {sum(lengths) / train:.0f} tokens on average, {share:.0%} cut off at {most}",
    )
    return share


def _look_at_draws(name: str, found: SiloBatches, config: SplitConfig, findings: Findings) -> None:
    """Note whether DP-SGD can draw from a silo's data, and what the whole run comes to there."""
    summary, train = found.summary, config.train
    whole = summary.own <= summary.kept
    if whole:
        found.train(1)
    examples = found.num_train if whole else int(found.num_train * summary.own / summary.kept)
    expected = train.batch_size * train.accumulation
    steps = train.local_steps or train.local_epochs * math.ceil(examples / expected)
    released = SampledGaussians(
        noise=config.dp.noise,
        chance=min(1.0, expected / max(1, examples)),
        times=steps * config.num_server_rounds,
    )
    delta, most = config.dp.delta, config.dp.max_epsilon
    epsilon, first = released.epsilon(delta), replace(released, times=steps).epsilon(delta)
    on = f"on {'' if whole else 'about '}{examples} examples"
    text = f"{_silos([name])}: {figures(epsilon, delta)} after {released.times} steps {on}"
    if not most or epsilon <= most:
        findings.ok(DP, text)
        return
    within = f"all of its steps stay within it with dp.noise {released.least_noise(delta, most):g}"
    if first > most:
        findings.refuse(
            DP,
            f"{_silos([name])}: the first round's {steps} steps {on} come to ε = {first:.3g}, and "
            f"dp.max-epsilon is {most:g}, so that the run trains nothing: {within}; fewer steps "
            "(train.local-steps, num-server-rounds) or more examples need less",
        )
    else:
        findings.warn(DP, f"{text}, and dp.max-epsilon {most:g} ends the run before: {within}")


def _silos(names: list[str]) -> str:
    return "this silo" if names == [OWN] else f"silo{'s' * (len(names) > 1)} {', '.join(names)}"
