"""A line: one gRPC stream of a session, on a connection of its own, and how it ended."""

import threading
from collections.abc import Iterator

import grpc

from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkStub
from flower_split.transport.grpc.status import ERROR_KEY

# gRPC's own codes for a connection or stream that ended without a word of the peer's program.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class Line:
    """A stream on `channel`, which is closed together with it.

    Args:
        channel: To the trunk.
        frames: What is sent; iterated by a thread of gRPC's.
    """

    def __init__(self, channel: grpc.Channel, frames: Iterator[pb.ClientFrame]) -> None:
        self.ended = threading.Event()
        """Set when nothing will be received any more."""
        self._channel = channel
        stub = TrunkStub(channel)  # type: ignore[no-untyped-call]
        self._call = stub.Session(frames)
        self._received = self._receive()

    def first(self, seconds: float) -> pb.ServerFrame | None:
        """The first frame; None where the stream ends without any.

        Raises:
            grpc.RpcError: it ended with an error, or none came within `seconds`.
        """
        timer = threading.Timer(seconds, self._call.cancel)
        timer.daemon = True
        timer.start()
        try:
            return next(self._received, None)
        finally:
            timer.cancel()

    def frames(self) -> Iterator[pb.ServerFrame]:
        """What is received, after what was already; raises `grpc.RpcError` at an error's end."""
        return self._received

    def close(self, patience: float = 0.0) -> None:
        """End the stream if it has not ended by itself in `patience` seconds; can be repeated."""
        self.ended.wait(patience)
        self._call.cancel()
        self._channel.close()

    def _receive(self) -> Iterator[pb.ServerFrame]:
        try:
            yield from self._call
        finally:
            self.ended.set()


def is_stated(error: grpc.RpcError) -> bool:
    """Whether the trunk itself said why the stream ended."""
    if not isinstance(error, grpc.Call):
        return False
    return any(key == ERROR_KEY for key, _ in error.trailing_metadata() or ())


def is_broken(error: grpc.RpcError) -> bool:
    """Whether the stream ended by its connection's fault."""
    if not isinstance(error, grpc.Call):
        return True
    return error.code() in _BROKEN and not is_stated(error)
