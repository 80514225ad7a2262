"""An HTTP proxy in this process: it connects whatever name it is asked for to one local port."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class HttpProxy:
    """What the proxy was asked, and how it answers."""

    port: int
    target: int
    """Port of loopback that it connects to."""
    status: str = "200 Connection established"
    requests: list[str] = field(default_factory=list)
    """Heads of the requests so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def http_proxy(target: int = 0, status: str = "") -> Iterator[HttpProxy]:
    """A proxy; without a status that refuses, it connects to `target`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        proxy = HttpProxy(port=listener.getsockname()[1], target=target)
        proxy.status = status or proxy.status
        threading.Thread(target=_accept, args=(listener, proxy), daemon=True).start()
        yield proxy
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, proxy: HttpProxy) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(connection, proxy), daemon=True).start()


def _serve(connection: socket.socket, proxy: HttpProxy) -> None:
    with connection, suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(4096)
            if not piece:
                return
            head += piece
        proxy.requests.append(head.decode())
        if not proxy.status.startswith("2"):
            connection.sendall(f"HTTP/1.1 {proxy.status}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        with socket.create_connection(("127.0.0.1", proxy.target)) as further:
            connection.sendall(f"HTTP/1.1 {proxy.status}\r\n\r\n".encode())
            back = threading.Thread(target=_pump, args=(further, connection), daemon=True)
            back.start()
            _pump(connection, further)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
