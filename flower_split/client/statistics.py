"""Statistics of a session: what it cost, as plain numbers in the reply."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from flower_split.config.wire import HOPS
from flower_split.reporting.counters import bytes_counter, trunk_counters
from flower_split.transport.base import Transport
from flower_split.transport.messages import CONTEXT, SessionSummary

Statistics = dict[str, str | int | float]


@dataclass(kw_only=True)
class SessionCost:
    """What is known of a session's cost while it runs."""

    silo: str
    parameter_share: float = 0.0
    """Part of the uncut model's parameters that the silo holds, 0 to 1."""
    started: float = field(default_factory=time.monotonic)
    process_age: float = field(default_factory=lambda: time.time() - _process_start())
    """Seconds from the start of the process to that of the session; in a deployment, where every
    message has a process of its own, what starting Python and importing has cost."""
    loaded: float = 0.0
    """When model and adapters were there, on the clock of `started`."""
    connected: float = 0.0
    """When the trunk had let the session in, on the clock of `started`."""

    def report(self, transport: Transport, summary: SessionSummary, *, resumed: bool) -> Statistics:
        """The statistics of a complete session, by the names under which they are reported."""
        now = time.monotonic()
        return {
            "silo": self.silo,
            "tokens-per-second": summary.tokens / max(now - self.connected, 1e-6),
            "bytes-sent": transport.bytes_sent,
            "bytes-received": transport.bytes_received,
            **{
                bytes_counter(hop): count
                for hop, count in transport.wire_bytes.items()
                if count or hop in (*HOPS, CONTEXT)
            },
            "seconds": now - self.started,
            "seconds-before": self.process_age,
            "seconds-loading": self.loaded - self.started,
            "seconds-connecting": self.connected - self.loaded,
            "seconds-waiting": transport.waits.seconds,
            "parameter-share": self.parameter_share,
            **trunk_counters(summary),
            "state-resumed": int(resumed),
        }


_begun: float | None = None


@contextmanager
def process_begun(at: float) -> Iterator[None]:
    """Have sessions count from the start of the process that hands a message over to this one.

    Args:
        at: In seconds since the epoch.
    """
    global _begun
    _begun = at
    try:
        yield
    finally:
        _begun = None


def _process_start() -> float:
    return float(psutil.Process().create_time()) if _begun is None else _begun
