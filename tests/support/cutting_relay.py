"""A relay between a silo and a trunk that cuts connections at the messages that a test names.

It reads HTTP/2 without TLS as far as it must to know gRPC's messages: the frames' headers, and the
lengths in front of messages.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
HEADER = 9
DATA, PADDED = 0, 8
PREFIX = 5
"""Bytes in front of a gRPC message: a flag, and its length."""

Direction = Literal["up", "down"]
Place = Literal["before", "middle", "after", "stall", "freeze"]
"""`stall`: from its middle on nothing more passes in its direction. `freeze`: from before it on
nothing passes in either, and neither end learns what the other does."""


@dataclass(frozen=True)
class Message:
    """One message of a connection."""

    connection: int
    """How many there were before."""
    direction: Direction
    number: int
    """How many of its direction the connection had before."""


Cut = Callable[[Message], Place | None]
"""Whether the connection is cut at a message, and where."""


class CuttingRelay:
    """Between silos and the trunk at `target`; what it cannot read, as it is TLS, just passes."""

    def __init__(
        self, target: str, cut: Cut = lambda message: None, *, is_tls: bool = False
    ) -> None:
        self._is_tls = is_tls
        self.lead_to(target)
        self._cut = cut
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._frozen: set[int] = set()
        self._left = threading.Event()
        self._accepts = True
        self.seen: list[Message] = []
        """Every message that began to pass, or would have."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        return len({message.connection for message in self.seen})

    def refuse(self, refuses: bool) -> None:
        """Close whatever connects from now on, and what is open; or not any more."""
        self._accepts = not refuses
        if refuses:
            self.cut_all()

    def lead_to(self, target: str) -> None:
        """Connections from now on."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)

    def cut_all(self) -> None:
        """Close what is open."""
        with self._lock:
            open_now, self._open = self._open, []
        for one in open_now:
            _end(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _end(self._listener)
        self._left.set()
        self.cut_all()
        self._thread.join(10)

    def _accept(self) -> None:
        number = 0
        pumps = []
        while True:
            try:
                silo, _ = self._listener.accept()
            except OSError:
                break
            if not self._accepts:
                silo.close()
                continue
            try:
                trunk = socket.create_connection(self._target, 5)
            except OSError:
                silo.close()
                continue
            with self._lock:
                self._open += [silo, trunk]
            ways: list[tuple[Direction, socket.socket, socket.socket]] = [
                ("up", silo, trunk),
                ("down", trunk, silo),
            ]
            for direction, source, sink in ways:
                pump = threading.Thread(
                    target=self._pump, args=(number, direction, source, sink), daemon=True
                )
                pump.start()
                pumps.append(pump)
            number += 1
        for pump in pumps:
            pump.join(10)

    def _pump(
        self, connection: int, direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            while self._is_tls and (data := source.recv(1 << 16)):
                sink.sendall(data)
            if direction == "up":
                sink.sendall(_read(source, PREFACE))
            count, left, prefix = 0, 0, b""
            while True:
                header = _read(source, HEADER)
                payload = _read(source, int.from_bytes(header[:3], "big"))
                place: Place | None = None
                if header[3] == DATA:
                    if header[4] & PADDED:
                        raise ValueError("gRPC pads no frames")
                    rest = payload
                    while rest:
                        if left == 0:
                            if not prefix:
                                message = Message(connection, direction, count)
                                self.seen.append(message)
                                place = place or self._cut(message)
                                count += 1
                            taken = rest[: PREFIX - len(prefix)]
                            prefix, rest = prefix + taken, rest[len(taken) :]
                            if len(prefix) == PREFIX:
                                left, prefix = int.from_bytes(prefix[1:], "big"), b""
                        else:
                            taken = rest[:left]
                            left, rest = left - len(taken), rest[len(taken) :]
                if place == "freeze":
                    self._frozen.add(connection)
                if connection in self._frozen:
                    self._left.wait()
                    break
                sent = header + payload
                if place in ("middle", "stall"):
                    sink.sendall(sent[: HEADER + len(payload) // 2])
                elif place != "before":
                    sink.sendall(sent)
                while place == "stall":
                    _read(source, 1)
                if place is not None:
                    break
        if connection in self._frozen:
            self._left.wait()
        _end(source)
        _end(sink)


def _read(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
