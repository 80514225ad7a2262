"""A proxy between silos and trunk whose connections can be cut, or carry nothing for a while."""

import socket
import struct
import threading
import time
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)
"""With this as `SO_LINGER` a socket is closed by a reset."""


class CuttableProxy:
    """Forwards connections on a port of its own to `target`; a context manager.

    Args:
        target: Port on loopback, where something listens or will.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._closed = False

    def __enter__(self) -> "CuttableProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Reset every connection; returns how many there were."""
        with self._lock:
            held, self._open = self._open, set()
        for one in held:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        return len(held) // 2

    def silence(self, seconds: float) -> None:
        """Carry nothing for so long, in either direction, and keep it until then."""
        self._silent_until = time.monotonic() + seconds

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open) // 2

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5.0)
                far.settimeout(None)
            except OSError:  # no trunk at the moment
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while (left := self._silent_until - time.monotonic()) > 0:
                    time.sleep(min(left, 0.2))
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
