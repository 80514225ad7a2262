"""A call of gRPC made by hand, byte by byte: what no gRPC client would send."""

import re
import socket
import struct
import zlib
from collections import Counter
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
CANCEL = struct.pack(">I", 8)
REFUSED = -1
"""In place of a status: the stream was refused before it was a call."""
NO_TABLE = struct.pack(">HI", 1, 0)
"""Settings under which every header comes as it is."""
ACK, END_HEADERS = 1, 4
_FRAME = 16_384
_WINDOW_UPDATE = b"\x00\x00\x04\x08\x00\x00\x00\x00\x00"
"""Of a whole connection, whose window a server widens as it begins."""
_PING = re.compile(rb"\x00\x00\x08\x06\x00\x00\x00\x00\x00(.{8})", re.DOTALL)
_REFUSED = re.compile(rb"\x00\x00\x04\x03\x00.{4}\x00\x00\x00\x07", re.DOTALL)
_STATUS = re.compile(rb"grpc-status(?:\x01(\d)|\x02(\d\d))")


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal that is in no table."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def message(payload: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A message with the length that is said, which may be another than its own."""
    told = len(payload) if length is None else length
    return struct.pack(">BI", compressed, told) + payload


def opening(address: str, path: str, encoding: str = "identity") -> bytes:
    """The headers of a call."""
    names = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-encoding": encoding,
    }
    return b"".join(header(name, value) for name, value in names.items())


class Streams:
    """A connection with as many calls as a test wants, none of which sends anything by itself."""

    def __init__(self, address: str, path: str, *, encoding: str = "identity") -> None:
        host, _, port = address.rpartition(":")
        self._headers = opening(address, path, encoding)
        self._socket = socket.create_connection((host, int(port)), 20)
        self._socket.sendall(PREFACE + frame(SETTINGS, NO_TABLE))
        self._next = 1
        self._said, self._ended = b"", False
        while _WINDOW_UPDATE not in self._said:
            self._hear()
        self._socket.sendall(frame(SETTINGS, flags=ACK))  # the windows count from now on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def open(self, count: int, *, reset: bool = False) -> None:
        """Open so many calls; with `reset`, each is cancelled as it is opened."""
        for _ in range(count):
            piece = frame(HEADERS, self._headers, flags=END_HEADERS, stream=self._next)
            if reset:
                piece += frame(RST_STREAM, CANCEL, stream=self._next)
            self._next += 2
            try:
                self._socket.sendall(piece)
            except OSError:  # the server has had enough of this connection
                return

    def send(self, data: bytes) -> None:
        """Send `data` in the call that was opened last, as far as the server lets it."""
        for start in range(0, len(data), _FRAME):
            try:
                piece = data[start : start + _FRAME]
                self._socket.sendall(frame(DATA, piece, stream=self._next - 2))
            except OSError:
                return

    def endings(self, count: int) -> Counter[int]:
        """The numbers of the statuses with which so many calls ended, `REFUSED` those that HTTP/2
        refused; fewer where the server has ended the connection."""
        while True:
            found = _STATUS.findall(self._said)
            refused = len(_REFUSED.findall(self._said))
            if len(found) + refused >= count or self._ended:
                return Counter([*(int(one or two) for one, two in found), *[REFUSED] * refused])
            self._hear()

    def _hear(self) -> None:
        try:
            more = self._socket.recv(1 << 16)
        except ConnectionError:
            more = b""
        self._ended = not more
        self._said += more
        for ping in _PING.findall(more):
            self._socket.sendall(frame(PING, ping, flags=ACK))


def status_of(address: str, path: str, data: bytes, *, encoding: str = "identity") -> int:
    """The number of the status with which a call ends that sends `data` and does not end itself."""
    with Streams(address, path, encoding=encoding) as call:
        call.open(1)
        call.send(data)
        (status,) = call.endings(1)  # fails where the connection ended without one
    return status


def inflating(mebibytes: int) -> bytes:
    """A gzip stream of a thousandth of the zeros that it stands for."""
    zeros = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)  # good at any place
    checksum = 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    length = (mebibytes << 20) % 2**32
    return head + block * mebibytes + end + struct.pack("<II", checksum, length)
