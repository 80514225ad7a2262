"""Replies of silos: who sent one, whether it can be averaged with the others, what it holds.

A reply counts when it proves its sender, when its metrics can be averaged with those of the other
silos, and when its arrays are what the silo was asked for. Whatever else comes is left out, with a
reason that a person can act on.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from flower_split.config.silo_order import silo_order
from flower_split.errors import AdapterError
from flower_split.lowrank import (
    LORA_RECORD,
    Allowance,
    Instructions,
    Scaling,
    scaling_from_fields,
)
from flower_split.optimization.label_counts import problem_of
from flower_split.optimization.magnitude import LARGEST
from flower_split.server.ticket_record import SessionOutcome
from flower_split.strategies.hosting.adapter_parts import AdapterParts
from flower_split.transport.arrays import shortened
from flower_split.transport.invitation import PROOF, SPLIT_RECORD, Invitation
from flower_split.transport.records import miscounted

# What of a reply goes into the history, and is written to result.json, is bounded.
MOST_METRICS, LONGEST_NAME, MOST_VALUES = 128, 128, 4096

LONGEST_REASON = 4096
"""Characters of a silo's error that are kept."""

MOST_WEIGHT = 1e15
"""Largest weight of a reply: sums of such weights stay exact enough to divide by."""


def proves(reply: Message, invitation: Invitation) -> bool:
    """Whether the invited node sent `reply`, by its token."""
    statistics = reply.content.config_records.get(SPLIT_RECORD)
    return (
        statistics is not None
        and reply.metadata.src_node_id == invitation.ticket.node_id
        and invitation.is_proven_by(statistics.get(PROOF))
    )


def own_problem(content: RecordDict, weight_key: str, *, trained: bool) -> str:
    """Why a single reply cannot be averaged; empty when it can.

    Args:
        content: Of the reply.
        weight_key: Metric by which replies are weighed.
        trained: Whether it is a training reply, which has arrays too.
    """
    arrays = {"ArrayRecord": content.array_records} if trained else {}
    problem = miscounted("the reply", {**arrays, "MetricRecord": content.metric_records})
    if problem:
        return problem
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weight_key)
    if isinstance(weight, list) or weight is None or not 0 < weight <= MOST_WEIGHT:
        return (
            f"metric {weight_key!r} must be a number above 0 and at most {MOST_WEIGHT:g}, not "
            f"{shortened(weight)}"
        )
    return _metrics_problem(metrics)


def _metrics_problem(metrics: MetricRecord) -> str:
    if len(metrics) > MOST_METRICS:
        return f"the reply has {len(metrics)} metrics, expected at most {MOST_METRICS}"
    for name, value in metrics.items():
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            return (
                f"a metric's name has {len(name)} characters, expected 1 to {LONGEST_NAME}, all "
                "printable"
            )
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_VALUES:
            return f"metric {name!r} has {len(values)} values, expected at most {MOST_VALUES}"
        if not all(abs(entry) <= LARGEST for entry in values):
            return f"metric {name!r} is not finite, or beyond {LARGEST:g}: the training diverged"
    return problem_of(metrics)


def outvoted(contents: Mapping[int, RecordDict]) -> dict[int, str]:
    """Nodes whose metrics are named otherwise than those of most nodes, and how.

    Args:
        contents: Of replies that can be averaged by themselves, by node id.
    """
    shapes = {node: _shape(content) for node, content in contents.items()}
    if len(set(shapes.values())) < 2:
        return {}
    usual = Counter(shapes.values()).most_common(1)[0][0]
    return {
        node: (
            f"its metrics are {shortened(', '.join(sorted(keys)))} in record "
            f"{shortened(name)!r}; most silos sent "
            f"{', '.join(sorted(usual[1]))} in record {usual[0]!r}"
        )
        for node, (name, keys) in shapes.items()
        if (name, keys) != usual
    }


def _shape(content: RecordDict) -> tuple[str, frozenset[str]]:
    """Name of the metrics' record, and every metric with its length where it is a list."""
    ((name, metrics),) = content.metric_records.items()
    return name, frozenset(
        f"{key}[{len(value)}]" if isinstance(value, list) else key for key, value in metrics.items()
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the inner strategy's message asks of a silo's training."""

    instructions: Instructions
    controls: tuple[str, ...] = ()
    """Names of the control variates in the message."""


def weight_of(content: RecordDict, weight_key: str) -> float:
    """The weight of a reply that has no `own_problem`."""
    (metrics,) = content.metric_records.values()
    return float(str(metrics[weight_key]))


def reweighted(content: RecordDict, weight_key: str, weight: float) -> RecordDict:
    """A copy of the content of a reply, with another weight."""
    ((name, metrics),) = content.metric_records.items()
    changed = MetricRecord({**dict(metrics.items()), weight_key: weight})
    return RecordDict({**dict(content.items()), name: changed})


def scaling_of_reply(content: RecordDict, allowance: Allowance) -> Scaling | None:
    """Rank and alpha of the adapter in a reply: the run's, where it tells none.

    Raises:
        AdapterError: what it tells is malformed.
    """
    told = content.config_records.get(LORA_RECORD)
    return allowance.scaling if told is None else scaling_from_fields(dict(told.items()))


def completed(
    content: RecordDict,
    outcome: SessionOutcome,
    asked: Asked,
    *,
    parts: AdapterParts,
    allowance: Allowance,
) -> ArrayRecord:
    """The arrays of a training reply as the inner strategy shall see them.

    Args:
        content: Of the reply, with exactly one ArrayRecord.
        outcome: Of the silo's session at the trunk.
        asked: What the silo was asked for.
        parts: Who holds which tensors.
        allowance: Which ranks and alphas silos may have.

    Raises:
        AdapterError: the reply is not what was asked for, or of another rank or alpha than the
            silo told in its handshake, or may have.
    """
    scaling = scaling_of_reply(content, allowance)
    if outcome.scaling is not None and scaling != outcome.scaling:
        raise AdapterError(
            f"the reply is of an adapter with {scaling}, and the silo's session at the "
            f"trunk was opened for one with {outcome.scaling}"
        )
    problem = allowance.problem(scaling)
    if problem:
        raise AdapterError(problem)
    (arrays,) = content.array_records.values()
    rank = None if scaling is None else scaling.r
    wanted = parts.replied(asked.instructions, asked.controls, rank)
    return parts.join(arrays, outcome.tensors, wanted)


_NAMED = re.compile(r"silo '(?P<silo>[^'\n]{1,128})': (?P<text>.+)", re.DOTALL)


def named(reason: str) -> tuple[str, str]:
    """The silo's name as it says itself, empty where it does not, and the rest of `reason`.

    Who said so is not proven: for people to read, and for nothing to be decided by.
    """
    found = _NAMED.fullmatch(reason)
    return (found["silo"], found["text"]) if found else ("", reason)


def by_reason(failures: Mapping[str, str]) -> dict[str, str]:
    """Every reason once, with the silos that have it in a phrase such as `silos 0, 1`.

    Args:
        failures: By the silo's name, or by the phrase `node …` for one that never told its own.
    """
    found: dict[str, list[str]] = {}
    for name, reason in failures.items():
        told, text = named(reason)
        found.setdefault(text, []).append(told or name)
    return {text: _phrase(names) for text, names in found.items()}


def _phrase(names: list[str]) -> str:
    nodes = [name for name in names if name.startswith("node ")]
    silos = sorted((name for name in names if name not in nodes), key=silo_order)
    told = [f"silo{'s' * (len(silos) > 1)} {', '.join(silos)}"] if silos else []
    if nodes:
        numbers = ", ".join(name.removeprefix("node ") for name in nodes)
        told.append(f"node{'s' * (len(nodes) > 1)} {numbers}")
    return " and ".join(told)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPED = re.compile(r"<class '([\w.]*\.)?(?P<kind>\w+)(\(\w+\))?'>:<'(?P<text>.*)'>", re.DOTALL)
_IN_SIMULATION = "Exception ClientAppException occurred. Message: "


def readable(reason: str) -> str:
    """`reason` of a Flower error reply without class paths, colours and Ray's traceback."""
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[: LONGEST_REASON // 2]} … {reason[-LONGEST_REASON // 2 :]}"
    text = _COLOURS.sub("", reason).strip()
    found = _WRAPPED.fullmatch(text)
    kind, text = (found["kind"], found["text"].strip()) if found else ("", text)
    if _IN_SIMULATION in text:
        # The simulation nests the message in a traceback and keeps no class.
        return text.rpartition(_IN_SIMULATION)[2].strip()
    return f"{kind}: {text}" if kind else text
