"""A silo without manners: sends whatever frames a test wants, and reports how the stream ended."""

import contextlib
import queue
from types import TracebackType
from typing import Self

import grpc

from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkStub
from flower_split.transport.grpc.channel import Keepalive, channel_options

SECONDS = 20.0


class RawSilo:
    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, channel_options(Keepalive()))
        self._frames: queue.SimpleQueue[pb.ClientFrame | None] = queue.SimpleQueue()
        self.call = TrunkStub(self._channel).Session(  # type: ignore[no-untyped-call]
            iter(self._frames.get, None), timeout=SECONDS
        )

    def send(self, *frames: pb.ClientFrame) -> Self:
        for frame in frames:
            self._frames.put(frame)
        return self

    def half_close(self) -> Self:
        self._frames.put(None)
        return self

    def read(self) -> pb.ServerFrame:
        frame: pb.ServerFrame = next(self.call)
        return frame

    def ending(self) -> tuple[grpc.StatusCode, str, str]:
        """Code, class name in the trailing metadata, and details; reads the rest of the stream."""
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass
        metadata = dict(self.call.trailing_metadata())
        return self.call.code(), metadata.get("flower-split-error", ""), self.call.details()

    def close(self) -> None:
        self.half_close()
        self.call.cancel()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
