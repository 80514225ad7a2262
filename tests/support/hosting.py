"""A trunk server around a backend, and the check that nothing of it stays behind."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flower_split.server.grpc.server import TrunkServer

SECONDS = 15.0
POOLS = ("trunk-compute", "trunk-codecs", "trunk-delivery", "odd-trunk")
POLLER = "_poll_wrapper"
"""The one thread that grpc.aio keeps for a process; it ends with the last server object."""


def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Whether `condition` becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def nothing_left(*, servers_too: bool = False) -> Iterator[None]:
    """Fail if the block leaves a thread running; a server's pools start theirs when needed."""
    before = set(threading.enumerate())
    yield
    new: list[str] = []
    ours = () if servers_too else POOLS

    def gone() -> bool:
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        new[:] = [name for name in names if not (name.startswith(ours) or POLLER in name)]
        return not new

    assert eventually(gone), f"threads left running: {new}"


def is_free(port: int) -> bool:
    """Whether nobody listens on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def hosting(backend: object, **options: object) -> Iterator[TrunkServer]:
    """A started server, and proof that its end is the end of all of it."""
    with nothing_left(servers_too=True):
        with TrunkServer(backend, **options) as server:  # type: ignore[arg-type]
            port = server.port
            yield server
        assert is_free(port)
