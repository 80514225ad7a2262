"""What one session may hold at the trunk: the trunk enforces it and tells it to the silo."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """Bounds of one session."""

    max_in_flight: int = 8
    """Microbatches whose activations are kept."""
    max_message_tokens: int = 65536
    """B x T of one microbatch."""
    max_cached_tokens: int = 262144
    """Rows x tokens in key-value caches."""
