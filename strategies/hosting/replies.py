"""A silo's reply: whether it proves its sender, and the trunk's part put into it."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from flower_split.errors import AdapterError
from flower_split.lowrank import RECORD, Allowance, Instructions, scaling_from_fields
from flower_split.server.starting import SessionOutcome
from flower_split.strategies.hosting.adapter_parts import AdapterParts
from flower_split.transport.invitation import PROOF, Invitation

STATISTICS = "split"
"""Name of the ConfigRecord in which a reply carries its proof and the session's statistics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Invited:
    """Whom a message went to, and what the inner strategy asks of it."""

    message: Message
    invitation: Invitation
    instructions: Instructions
    controls: tuple[str, ...]
    """Names of the control variates in the inner strategy's message."""


def proves(reply: Message, invitation: Invitation) -> bool:
    """Whether the invited node sent `reply`, by its token."""
    statistics = reply.content.config_records.get(STATISTICS)
    return (
        statistics is not None
        and reply.metadata.src_node_id == invitation.ticket.node_id
        and invitation.is_proven_by(statistics.get(PROOF))
    )


def completed(
    content: RecordDict,
    outcome: SessionOutcome,
    invited: Invited,
    *,
    parts: AdapterParts,
    allowance: Allowance,
) -> ArrayRecord:
    """The arrays of a training reply as the inner strategy shall see them.

    Args:
        content: Of the reply, with exactly one ArrayRecord.
        outcome: Of the silo's session at the trunk.
        invited: What the silo was asked for.
        parts: Who holds which tensors.
        allowance: Which ranks and alphas silos may have.

    Raises:
        AdapterError: the reply is not what was asked for, or of another rank or alpha than the
            silo told in its handshake, or may have.
    """
    told = content.config_records.get(RECORD)
    scaling = allowance.scaling if told is None else scaling_from_fields(dict(told.items()))
    if outcome.scaling is not None and scaling != outcome.scaling:
        raise AdapterError(
            f"the reply is of an adapter with {scaling}, and the silo's session at the "
            f"trunk was opened for one with {outcome.scaling}"
        )
    problem = allowance.problem(scaling)
    if problem:
        raise AdapterError(problem)
    (arrays,) = content.array_records.values()
    wanted = parts.replied(invited.instructions, invited.controls, scaling.r)
    return parts.join(arrays, outcome.tensors, wanted)


Contents = Mapping[int, RecordDict]
"""Content of a reply by node id."""

# What of a reply is kept in the history, and written to result.json, is bounded.
MOST_METRICS, LONGEST_NAME, MOST_VALUES = 128, 128, 4096

MOST_WEIGHT = 1e15
"""Largest weight of a reply: sums of such weights stay exact enough to divide by."""


def own_problem(content: RecordDict, weight_key: str, *, trained: bool) -> str:
    """Why a single reply cannot be averaged; empty when it can."""
    counts = len(content.array_records), len(content.metric_records)
    wanted = (1, 1) if trained else (counts[0], 1)
    if counts != wanted:
        return (
            f"the reply has {counts[0]} ArrayRecords and {counts[1]} MetricRecords, expected "
            f"{'exactly one of each' if trained else 'exactly one MetricRecord'}"
        )
    metrics = _metrics(content)
    weight = metrics.get(weight_key)
    if isinstance(weight, list) or weight is None or not 0 < weight <= MOST_WEIGHT:
        return (
            f"metric {weight_key!r} must be a number above 0 and at most {MOST_WEIGHT:g}, not "
            f"{weight!r}"
        )
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
        if not all(math.isfinite(entry) for entry in values):
            return f"metric {name!r} is not finite: the training diverged"
    return ""


def outvoted(contents: Contents) -> dict[int, str]:
    """Nodes whose metrics are named otherwise than those of most nodes, and how."""
    shapes = {node: _shape(content) for node, content in contents.items()}
    if len(set(shapes.values())) < 2:
        return {}
    usual = Counter(shapes.values()).most_common(1)[0][0]
    return {
        node: (
            f"its metrics are {', '.join(sorted(keys))} in record {name!r}; most silos sent "
            f"{', '.join(sorted(usual[1]))} in record {usual[0]!r}"
        )
        for node, (name, keys) in shapes.items()
        if (name, keys) != usual
    }


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _shape(content: RecordDict) -> tuple[str, frozenset[str]]:
    """Name of the metrics' record, and every metric with its length where it is a list."""
    name, metrics = next(iter(content.metric_records.items()))
    return name, frozenset(
        f"{key}[{len(value)}]" if isinstance(value, list) else key for key, value in metrics.items()
    )


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPED = re.compile(r"<class '([\w.]*\.)?(?P<kind>\w+)(\(\w+\))?'>:<'(?P<text>.*)'>", re.DOTALL)
_IN_SIMULATION = "Exception ClientAppException occurred. Message: "


def readable(reason: str) -> str:
    """`reason` of a Flower error reply without class paths, colours and Ray's traceback."""
    text = _COLOURS.sub("", reason).strip()
    found = _WRAPPED.fullmatch(text)
    kind, text = (found["kind"], found["text"].strip()) if found else ("", text)
    if _IN_SIMULATION in text:
        # The simulation nests the message in a traceback and keeps no class.
        return text.rpartition(_IN_SIMULATION)[2].strip()
    return f"{kind}: {text}" if kind else text
