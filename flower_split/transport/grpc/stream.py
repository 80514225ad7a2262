"""One session's gRPC stream at the silo: its threads, its queue, and its one failure.

gRPC's own thread takes frames from the queue and so encodes tensors; a second thread decodes what
arrives and completes futures; a third one watches the time. No caller's thread touches the wire.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import grpc

from flower_split.errors import TrunkError, TrunkUnavailableError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkStub
from flower_split.transport.grpc.handshake import read_welcome
from flower_split.transport.grpc.replies import ReplyReader
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.status import from_status
from flower_split.transport.messages import Answerable, Request
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import HopRules

_JOIN_SECONDS = 5.0


class GrpcStream:
    """A stream on `channel`, opened with `hello`.

    Args:
        channel: Closed together with the stream.
        address: What errors call the peer.
        hello: The first frame.
        rules: What the session's tensors look like.
        timeout: Seconds without a frame from the trunk, while it owes one, after which the
            stream fails; twice as many for a whole reply.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        hello: pb.ClientFrame,
        rules: HopRules,
        timeout: float,
    ) -> None:
        self.meter = ByteMeter()
        self.welcome: Future[pb.Welcome] = Future()
        self._channel = channel
        self._address = address
        self._hello = hello
        self._rules = rules
        self._timeout = timeout
        self._lock = threading.RLock()  # a finalizer may close the stream in the midst of it
        self._failure: TrunkError | None = None
        self._failed = threading.Event()
        self._outbox: SimpleQueue[Request | None] = SimpleQueue()
        self._owed: deque[tuple[Answerable, Future[Any]]] = deque()
        self._progress = self._replied = time.monotonic()
        stub = TrunkStub(channel)  # type: ignore[no-untyped-call]
        self._call = stub.Session(self._frames())
        self._threads = [
            threading.Thread(target=self._receive, name="trunk-receiver", daemon=True),
            threading.Thread(target=self._watch, name="trunk-watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, request: Answerable) -> Future[Any]:
        """Send `request` after all earlier ones; the future holds its reply."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a request on its way cannot be cancelled
        with self._lock:
            if self._failure is None:
                if not self._owed:
                    self._progress = self._replied = time.monotonic()
                self._owed.append((request, future))
                self._outbox.put(request)
                return future
        future.set_exception(self._failure)
        return future

    def tell(self, request: Request) -> None:
        """Send `request`, which gets no reply; does nothing once the stream has failed."""
        if self._failure is None:
            self._outbox.put(request)

    def close(self, reason: str = "the session was closed") -> None:
        """End the stream, its threads and the channel; can be called twice and from anywhere."""
        self.fail(TrunkUnavailableError(reason))
        self._channel.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)

    def fail(self, error: TrunkError) -> None:
        """End the stream: whatever is owed, and whatever is asked later, fails with `error`."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            owed = [future for _, future in self._owed]
            self._owed.clear()
        self._failed.set()
        self._outbox.put(None)
        self._call.cancel()
        if not self.welcome.done():
            self.welcome.set_exception(error)
        for future in owed:
            future.set_exception(error)

    def _frames(self) -> Iterator[pb.ClientFrame]:
        """Everything to be sent; gRPC iterates it in a thread of its own."""
        yield self._hello
        while (request := self._outbox.get()) is not None:
            try:
                encoded = encode_request(request, self._rules)
            except TrunkError as exc:
                self.fail(exc)
                return
            except Exception as exc:
                self.fail(_caused(WireError(f"{type(request).__name__} cannot be encoded"), exc))
                return
            del request  # the caller's tensors need not outlive their encoding
            for outgoing in encoded.tensors:
                self.meter.add(outgoing.header.role, outgoing.header.num_bytes)
            yield from encoded.frames()

    def _receive(self) -> None:
        try:
            frames = iter(self._call)
            first = next(frames, None)
            if first is None or first.WhichOneof("frame") != "welcome":
                raise WireError(f"trunk at {self._address}: the first frame was no welcome")
            self._limits = read_welcome(first.welcome)
            with self._lock:
                if self._failure is None:
                    self.welcome.set_result(first.welcome)
            reader: ReplyReader | None = None
            for frame in frames:
                self._progress = time.monotonic()
                reader = self._take(frame, reader)
            ended = f"the session has ended: the trunk at {self._address} closed its stream"
            self.fail(TrunkUnavailableError(ended))
        except grpc.RpcError as exc:
            self.fail(_caused(self._from_call(exc), exc))
        except TrunkError as exc:
            self.fail(exc)
        except Exception as exc:
            error = WireError(f"trunk at {self._address}: a reply cannot be read")
            self.fail(_caused(error, exc))

    def _take(self, frame: pb.ServerFrame, reader: ReplyReader | None) -> ReplyReader | None:
        """Hand `frame` to the oldest request's reader; returns it while the reply is incomplete."""
        with self._lock:
            if not self._owed:
                raise WireError(f"trunk at {self._address}: a reply that was not asked for")
            request, future = self._owed[0]
        reader = reader or ReplyReader(request, self._rules, self._limits)
        if not reader.feed(frame):
            return reader
        for tensor in reader.announced:
            self.meter.add(tensor.rule.role, tensor.num_bytes)
        reply = reader.reply()
        with self._lock:
            if not self._owed:  # failed meanwhile, and the future with it
                return None
            self._owed.popleft()
            self._replied = time.monotonic()
        future.set_result(reply)
        return None

    def _watch(self) -> None:
        while not self._failed.wait(min(1.0, self._timeout / 4)):
            now = time.monotonic()
            late = now - self._progress > self._timeout, now - self._replied > 2 * self._timeout
            if self._owed and any(late):
                seconds = self._timeout if late[0] else 2 * self._timeout
                self.fail(
                    TrunkUnavailableError(
                        f"trunk at {self._address} did not answer within {seconds:g} s"
                    )
                )

    def _from_call(self, exc: grpc.RpcError) -> TrunkError:
        if not isinstance(exc, grpc.Call):
            return TrunkUnavailableError(f"trunk at {self._address}: the connection broke")
        return from_status(exc.code(), exc.details(), exc.trailing_metadata(), self._address)


def _caused(error: TrunkError, cause: BaseException) -> TrunkError:
    error.__cause__ = cause
    return error
