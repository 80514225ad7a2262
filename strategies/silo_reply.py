"""A silo's reply: whether it proves its sender, and the trunk's part put into it."""

from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict

from flower_split.errors import AdapterError
from flower_split.lowrank import RECORD, Allowance, Orders, scaling_from_fields
from flower_split.server.starting import SessionOutcome
from flower_split.strategies.parts import AdapterParts
from flower_split.transport.invitation import PROOF, Invitation

STATISTICS = "split"
"""Name of the ConfigRecord in which a reply carries its proof and the session's statistics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Invited:
    """Whom a message went to, and what the inner strategy asks of it."""

    message: Message
    invitation: Invitation
    orders: Orders
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
    wanted = parts.replied(invited.orders, invited.controls, scaling.r)
    return parts.join(arrays, outcome.tensors, wanted)
