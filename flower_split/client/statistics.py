"""Statistics of a session: what it cost, as plain numbers in the reply."""

import time
from dataclasses import asdict, dataclass, field

from flower_split.transport.base import Transport
from flower_split.transport.messages import SessionSummary

Statistics = dict[str, str | int | float]


@dataclass(kw_only=True)
class SessionCost:
    """What is known of a session's cost while it runs."""

    silo: str
    parameter_share: float
    """Part of the uncut model's parameters that the silo holds, 0 to 1."""
    started: float = field(default_factory=time.monotonic)

    def report(self, transport: Transport, summary: SessionSummary, *, resumed: bool) -> Statistics:
        """The statistics of a complete session, by the names under which they are reported."""
        return {
            "silo": self.silo,
            "bytes-sent": transport.bytes_sent,
            "bytes-received": transport.bytes_received,
            **{f"bytes-{hop}": n for hop, n in asdict(transport.wire_bytes).items()},
            "seconds": time.monotonic() - self.started,
            "parameter-share": self.parameter_share,
            "optimizer-steps": summary.steps,
            "optimizer-resumed": int(resumed),
            "trunk-forwards": summary.forwards,
            "trunk-tokens": summary.tokens,
        }
