"""HTTP connections: how `serve` and `monitor` speak HTTP, so that no peer holds what others need.

uvicorn waits for the head of a request without end, takes one of any length, and waits as long for
a reader that does not read. Here a connection has a time for each, and a head at most 16 KiB: h11
parses it, also where uvicorn would choose another parser.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""For the head of a request, from when the connection was opened or the answer before it ended."""
READ_SECONDS = 30.0
"""For which a reader may take nothing of what fills its buffers."""
LONGEST_HEAD = 1 << 14
"""Bytes of a request's head."""


class Timer:
    """Does something later, unless it is stopped before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, work: Callable[[], None]) -> None:
        """Do `work` after so many seconds; one that runs already is left as it is."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, work)

    def stop(self) -> None:
        """Do nothing, whether it runs or not."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class BoundedConnection(H11Protocol):
    """One connection, which is closed where its peer takes too long."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._head, self._read = Timer(), Timer()
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._head.stop()
        self._read.stop()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        self._wait_for_head()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._read.start(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        self._read.stop()

    def _wait_for_head(self) -> None:
        """Have the next request's time run, where none is at work, until its head is there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.stop()
        else:
            self._head.start(HEAD_SECONDS, self.transport.close)


def bounded(*, connections: int) -> dict[str, Any]:
    """What a `uvicorn.Config` needs for bounded connections, whose requests nobody logs.

    Args:
        connections: Beyond which requests are answered by status 503.
    """
    return {
        "http": BoundedConnection,
        "ws": "none",
        "h11_max_incomplete_event_size": LONGEST_HEAD,
        "limit_concurrency": connections,
        "access_log": False,
        "server_header": False,
    }
