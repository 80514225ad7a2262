"""Frames on the service's socket: four bytes of length, then a protobuf message of `silo.proto`.

What is announced is not allocated: bytes are kept as they come, up to a bound, in a time that ends.
"""

import socket
import struct
import time
from typing import TypeVar

from google.protobuf.message import DecodeError

from flower_split.errors import ServiceError, WireError
from flower_split.proto.silo_pb2 import Answer, Request

MIB = 1 << 20
MOST_BYTES = 1024 * MIB
"""Of a frame with a Flower message in it."""
MOST_SHORT_BYTES = MIB
"""Of every other frame."""
_LENGTH = struct.Struct(">I")

Frame = TypeVar("Frame", Request, Answer)


class GoneError(ServiceError):
    """The other end has closed the connection."""


class SilentError(ServiceError):
    """The other end has not sent what was waited for in time."""


def send(connection: socket.socket, frame: Request | Answer, *, seconds: float) -> None:
    """Send a frame.

    Raises:
        WireError: it is larger than any may be.
        GoneError, SilentError: the other end is gone, or has not taken it in `seconds`.
    """
    if frame.ByteSize() > MOST_BYTES:
        raise WireError(
            f"a message of {frame.ByteSize()} bytes is more than the {MOST_BYTES} that the silo "
            "service takes"
        )
    content = frame.SerializeToString()
    try:
        connection.settimeout(seconds)
        connection.sendall(_LENGTH.pack(len(content)) + content)
    except TimeoutError as error:
        raise SilentError(f"the other end took no message in {seconds:g} s") from error
    except OSError as error:
        raise GoneError("the other end has closed the connection") from error


def receive(
    connection: socket.socket,
    kind: type[Frame],
    *,
    seconds: float,
    most: int = MOST_SHORT_BYTES,
) -> Frame:
    """The next frame.

    Args:
        connection: Where it comes.
        kind: What the other end sends.
        seconds: In which all of it must have come.
        most: Bytes that it may have.

    Raises:
        WireError: it is larger, or not of that kind.
        GoneError, SilentError: the other end is gone, or it has not come in time.
    """
    end = time.monotonic() + seconds
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, end, seconds))
    if size > most:
        raise WireError(f"a frame of {size} bytes came, expected at most {most}")
    content = _exactly(connection, size, end, seconds)
    frame = kind()
    try:
        frame.ParseFromString(bytes(content))
    except DecodeError as error:
        raise WireError("a frame came that is no protobuf message of the silo service") from error
    if frame.WhichOneof("body") is None:
        raise WireError("an empty frame came, or one of another version of the silo service")
    return frame


def is_gone(connection: socket.socket) -> bool:
    """Whether the other end, which is to send nothing now, has closed the connection.

    Raises:
        WireError: it has sent something.
    """
    try:
        connection.settimeout(0.0)
        found = connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    if found:
        raise WireError("a frame came where none was expected")
    return True


def _exactly(connection: socket.socket, size: int, end: float, seconds: float) -> bytearray:
    content = bytearray()
    while len(content) < size:
        left = end - time.monotonic()
        if left <= 0:
            raise SilentError(f"no whole message came in {seconds:g} s")
        try:
            connection.settimeout(left)
            part = connection.recv(min(size - len(content), MIB))
        except TimeoutError:
            continue
        except OSError as error:
            raise GoneError("the other end has closed the connection") from error
        if not part:
            raise GoneError("the other end has closed the connection")
        content += part
    return content
