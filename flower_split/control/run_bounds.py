"""`RunBounds`: what a trunk service lets a run have."""

from dataclasses import dataclass, field

from flower_split.config.sections import SplitConfig
from flower_split.transport.messages import SessionLimits


@dataclass(frozen=True, kw_only=True)
class RunBounds:
    """What a service lets its runs have."""

    max_runs: int = 8
    max_sessions: int = 64
    """Of all runs together."""
    session: SessionLimits = field(default_factory=SessionLimits)
    """What one session of any run may hold."""
    max_bytes: int = 16 << 30
    """See `RunQuota`."""
    max_memory: float = 0.0
    """GB that `trunk.max-memory` of a run may be; 0 for what a run of its own would choose as the
    service begins."""
    max_activation_bytes: int = 0
    """Of activations that runs keep, together; 0 for what is free as the service begins."""
    opening: float = 20.0
    """Seconds that a run's adapter may take to begin with; the other runs wait meanwhile."""

    def problems(self, config: SplitConfig, *, max_memory: float) -> list[str]:
        """What a run of `config` asks for beyond them, by its keys.

        Args:
            config: The run's.
            max_memory: GB, as `max_memory` where that is not 0.
        """
        trunk, session = config.trunk, self.session
        bounded = (
            ("max-sessions", trunk.max_sessions, self.max_sessions),
            ("max-in-flight", trunk.max_in_flight, session.max_in_flight),
            ("max-message-tokens", trunk.max_message_tokens, session.max_message_tokens),
            ("max-cached-tokens", trunk.max_cached_tokens, session.max_cached_tokens),
        )
        found = [
            f"trunk.{name} is {asked}, and the trunk service lets a run have {bound}: lower it, "
            f"or raise the service's --{name}"
            for name, asked, bound in bounded
            if asked > bound
        ]
        if trunk.max_memory > max_memory:
            found.append(
                f"trunk.max-memory is {trunk.max_memory:g}, and the trunk service lets a run have "
                f"{max_memory:.3g}: lower it, leave it at 0, or raise the service's --max-memory"
            )
        return found
