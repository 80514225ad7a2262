"""A TCP proxy that counts: what really crossed the socket, in both directions."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class CountingProxy:
    """Bytes that one connection through `address` carried so far."""

    address: str
    upward: int = 0
    """From the one who connected."""
    downward: int = 0
    sockets: list[socket.socket] = field(default_factory=list)

    def serve(self, listener: socket.socket, target: tuple[str, int]) -> None:
        try:
            near, _ = listener.accept()
        except OSError:  # closed before anybody came
            return
        far = socket.create_connection(target)
        self.sockets += [near, far]
        back = threading.Thread(target=self.pump, args=(far, near, "downward"))
        back.start()
        self.pump(near, far, "upward")
        back.join()

    def pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        except OSError:  # the other end has gone
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def counting_proxy(port: int) -> Iterator[CountingProxy]:
    """A proxy for one connection to `port` of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CountingProxy(f"127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=proxy.serve, args=(listener, ("127.0.0.1", port)))
        thread.start()
        try:
            yield proxy
        finally:
            if not proxy.sockets:
                listener.shutdown(socket.SHUT_RDWR)
            for end in proxy.sockets:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            thread.join()
            for end in proxy.sockets:
                end.close()
