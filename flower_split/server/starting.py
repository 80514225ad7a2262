"""A session's start and outcome: what the host of the trunk gives to it, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_split.lowrank import Allowance, Instructions, Scaling
from flower_split.transport.messages import SessionSummary


@dataclass(frozen=True, kw_only=True, eq=False)
class TrunkStart:
    """What a session starts from and is to do, as the strategy wants it for the silo."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The trunk's part of what the silo would get of an uncut model; empty unless `federated`."""
    instructions: Instructions = field(default_factory=Instructions)
    allowance: Allowance | None = None
    """Which ranks and alphas the silo may have; None for the trunk's own only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionOutcome:
    """What a finished session leaves."""

    tensors: Mapping[str, Tensor]
    """The trunk's part of the reply, float32; empty unless `federated` and trained."""
    summary: SessionSummary
    scaling: Scaling | None
    """Rank and alpha that the silo told in the handshake; None where it told none."""
