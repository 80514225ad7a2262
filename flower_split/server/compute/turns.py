"""`DeviceTurns`: a lock in the order of asking, by which several trunks share one device."""

import threading
from collections import deque

from flower_split.server.compute.kept_activations import KeptActivations


class DeviceTurns:
    """Context manager that one thread is in at a time; who has asked for longest is next.

    So each of several trunks that always have something to compute gets every n-th turn, whatever
    it asks for. A thread that is in it must not enter again.

    Args:
        activations: What all of them together keep; None where nothing bounds it.
    """

    def __init__(self, activations: KeptActivations | None = None) -> None:
        self.activations = activations
        """The same."""
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """Threads that wait for their turn now."""
        return len(self._waiting)

    def __enter__(self) -> None:
        with self._lock:
            if not self._busy:
                self._busy = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # busy all the while
            else:
                self._busy = False
