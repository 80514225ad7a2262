"""What the sessions of one chain have in common."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from flower_split.transport.messages import SessionLimits


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainTerms:
    """What a chain's sessions have in common."""

    limits: SessionLimits
    hidden_size: int
    context_length: int
    """Of the model; 0 where it knows none."""
    fixed_optimizer: bool
    """Whether a step's constants must be those of the handshake."""
    in_turn: AbstractContextManager[object]
    """Within which what the sessions have in common is read and changed at all stages."""
