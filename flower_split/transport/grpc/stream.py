"""One session at the silo's end of the wire: its threads, its streams, and its one failure.

gRPC's own thread takes requests from the journal and so encodes tensors; a second thread decodes
what arrives, completes futures, and goes on over another stream where one broke; a third one
watches the time. No caller's thread touches the wire.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc

from flower_split.errors import FlowerSplitError, TrunkError, TrunkUnavailableError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.account import Account, leaving
from flower_split.transport.grpc.channel import growing_pauses
from flower_split.transport.grpc.handshake import read_welcome
from flower_split.transport.grpc.journal import Entry, RequestJournal
from flower_split.transport.grpc.line import Line, is_broken, is_stated
from flower_split.transport.grpc.replies import ReplyReader
from flower_split.transport.grpc.requests import EncodedRequest, encode_request
from flower_split.transport.grpc.resuming import resume_frame
from flower_split.transport.grpc.status import from_status
from flower_split.transport.messages import Answerable, Request
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import HopRules

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 5.0
# What the trunk has for its answer to a Leave, before the stream is cut.
_LEAVE_SECONDS = 1.0
_ATTEMPT_SECONDS = 3.0
_LONGEST_PAUSE = 1.0
_LEAVE = pb.ClientFrame(leave=pb.Leave())
FUTILE_STREAMS = 5
"""Streams in a row over which nothing got through, after which a session is given up."""


class GrpcStream:
    """The streams of one session, the first of which is opened with `hello`.

    Args:
        connect: Opens a channel to the trunk, for one stream.
        address: What errors call the peer.
        hello: The first frame.
        rules: What the session's tensors look like.
        timeout: Seconds without a frame from the trunk, while it owes one, after which the
            session fails; twice as many for a whole reply.
        detection: Seconds in which the trunk finds out that a connection is dead. For so long,
            and for as long as it holds a session that broke, a silo tries to go on with it.
        refusal: Says why no attempt can succeed, after one that failed; None where one may.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.Channel],
        address: str,
        hello: pb.ClientFrame,
        rules: HopRules,
        timeout: float,
        *,
        detection: float = 0.0,
        refusal: Callable[[str], TrunkError | None] = lambda details: None,
    ) -> None:
        self.meter = ByteMeter()
        self.welcome: Future[pb.Welcome] = Future()
        self.account: Account | None = None
        """Is told of tensors before they are sent."""
        self.is_broken = False
        """Whether it failed by its connection's fault."""
        self.reconnects = 0
        """How often it went on over another stream."""
        self._connect = connect
        self._address = address
        self._secret, self._attempt = hello.hello.secret, hello.hello.attempt
        self._rules = rules
        self._timeout = timeout
        self._detection = detection
        self._refusal = refusal
        self._hold = 0.0
        self._reached = -1, -1
        self._futile = 0
        self._lock = threading.RLock()  # a finalizer may close the stream in the midst of it
        self._failure: TrunkError | None = None
        self._failed = threading.Event()
        self._is_greeted = False
        self._is_carried = True
        self._journal = RequestJournal()
        self._progress = self._replied = time.monotonic()
        self._journal.begin(self._attempt)
        self._line = Line(connect(), self._frames(self._attempt, hello))
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
                if not self._journal.owes:
                    self._progress = self._replied = time.monotonic()
                self._journal.add(request, (request, future))
                return future
        future.set_exception(self._failure)
        return future

    def tell(self, request: Request) -> None:
        """Send `request`, which gets no reply; does nothing once the session has failed."""
        with self._lock:
            if self._failure is None:
                self._journal.add(request)

    def close(self, reason: str = "the session was closed") -> None:
        """End the session, its threads and channels; can be called twice and from anywhere."""
        self.fail(TrunkUnavailableError(reason))
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(_JOIN_SECONDS)

    def fail(self, error: TrunkError) -> None:
        """End the session: whatever is owed, and whatever is asked later, fails with `error`."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
        owed = self._journal.close()
        self._failed.set()
        if not self.welcome.done():
            self.welcome.set_exception(error)
        for future in owed:
            future.set_exception(error)

    def _frames(self, attempt: int, first: pb.ClientFrame) -> Iterator[pb.ClientFrame]:
        """Everything that one stream sends; gRPC iterates it in a thread of its own."""
        yield first
        while (entry := self._journal.next(attempt)) is not None:
            encoded = self._encoded(entry)
            if encoded is None:
                break
            count, again = partial(self._count, encoded), bool(entry.digest)
            if self._journal.note_sent(attempt, entry, encoded.head, count):
                if not self._accounted(encoded, again=again):
                    break
                for frame in encoded.frames():
                    if not self._journal.carries(attempt):
                        break
                    yield frame
            del entry, encoded  # they need not outlive their sending
        if self._failure is not None:
            yield _LEAVE

    def _encoded(self, entry: Entry) -> EncodedRequest | None:
        """The request's frames; None where there are none, which fails the session."""
        try:
            return encode_request(entry.request, self._rules)
        except TrunkError as exc:
            self.fail(exc)
        except Exception as exc:
            what = f"{type(entry.request).__name__} cannot be encoded"
            self.fail(_caused(WireError(what), exc))
        return None

    def _accounted(self, encoded: EncodedRequest, *, again: bool) -> bool:
        """Whether the request's tensors may leave; where not, the session has failed."""
        if self.account is None or not encoded.tensors:
            return True
        try:
            self.account([leaving(outgoing, again=again) for outgoing in encoded.tensors])
        except FlowerSplitError as exc:
            self.fail(_caused(TrunkUnavailableError(f"nothing was sent: {exc}"), exc))
            return False
        return True

    def _count(self, encoded: EncodedRequest) -> None:
        for outgoing in encoded.tensors:
            self.meter.add(outgoing.header.role, outgoing.header.num_bytes)

    def _receive(self) -> None:
        line = self._line
        try:
            self._greet(line)
            while True:
                line = self._reconnected(self._broken(line))
        except grpc.RpcError as exc:
            self.is_broken = is_broken(exc)
            self.fail(_caused(self._from_call(exc), exc))
        except TrunkError as exc:
            self.fail(exc)
        except Exception as exc:
            error = WireError(f"trunk at {self._address}: a reply cannot be read")
            self.fail(_caused(error, exc))
        for _ in _until_broken(self._line.frames()):
            pass  # until the trunk has let the session go

    def _greet(self, line: Line) -> None:
        first = next(line.frames(), None)
        if first is None or first.WhichOneof("frame") != "welcome":
            raise WireError(f"trunk at {self._address}: the first frame was no welcome")
        self._limits = read_welcome(first.welcome)
        self._hold = first.welcome.reconnect_seconds if self._secret else 0.0
        with self._lock:
            self._is_greeted = True
            if self._failure is None:
                self.welcome.set_result(first.welcome)

    def _broken(self, line: Line) -> TrunkError:
        """Take replies until the stream has ended; why it did, where another one may go on.

        Raises:
            TrunkError: none may.
            grpc.RpcError: the same.
        """
        reader: ReplyReader | None = None
        try:
            for frame in line.frames():
                self._progress = time.monotonic()
                reader = self._take(frame, reader)
            ended = f"the session has ended: the trunk at {self._address} closed its stream"
            error: TrunkError = TrunkUnavailableError(ended)
        except grpc.RpcError as exc:
            if not is_broken(exc) or not self._hold:
                raise
            error = _caused(self._from_call(exc), exc)
        if not self._hold or self._journal.is_finished or self._failure is not None:
            raise error
        self._journal.end(self._attempt)
        line.close()
        return error

    def _take(self, frame: pb.ServerFrame, reader: ReplyReader | None) -> ReplyReader | None:
        """Hand `frame` to the oldest request's reader; returns it while the reply is incomplete."""
        owed = self._journal.oldest()
        if owed is None:
            if self._failure is not None:
                raise self._failure
            raise WireError(f"trunk at {self._address}: a reply that was not asked for")
        request, future = owed
        reader = reader or ReplyReader(request, self._rules, self._limits)
        if not reader.feed(frame):
            return reader
        for tensor in reader.announced:
            self.meter.add(tensor.rule.role, tensor.num_bytes)
        reply = reader.reply()
        with self._lock:
            if not self._journal.note_answered():  # failed meanwhile, and the future with it
                return None
            self._replied = time.monotonic()
        future.set_result(reply)
        return None

    def _reconnected(self, error: TrunkError) -> Line:
        """Another stream that goes on where one ended with `error`.

        Raises:
            TrunkError: there is none in time, or the trunk has the session no more.
            grpc.RpcError: the same, as the trunk said it.
        """
        if self._futile >= FUTILE_STREAMS:
            futile = (
                f"{error}; the connection broke {self._futile} times before anything got through"
            )
            raise _caused(TrunkUnavailableError(futile), error)
        started = time.monotonic()
        seconds = self._hold + self._detection
        logger.warning("%s; reconnecting for up to %g s", error, seconds)
        self._is_carried = False
        for pause in growing_pauses(_LONGEST_PAUSE):
            left = started + seconds - time.monotonic()
            if self._failed.wait(max(0.0, min(pause, left))) or left <= 0:
                break
            line = self._attempted(min(left, _ATTEMPT_SECONDS))
            if line is not None:
                self.reconnects += 1
                logger.info(
                    "the session at the trunk at %s goes on over another stream, after %.1f s",
                    self._address,
                    time.monotonic() - started,
                )
                return line
        self.is_broken = True
        tried = f"{error}; reconnecting was tried for {time.monotonic() - started:.0f} s"
        raise _caused(TrunkUnavailableError(tried), error)

    def _attempted(self, seconds: float) -> Line | None:
        """A stream over which the session goes on; None where the attempt failed."""
        self._attempt += 1
        attempt = self._attempt
        resume = resume_frame(self._secret, attempt, self._journal.point())
        with self._lock:  # or nobody would close it
            if self._failure is not None:
                raise self._failure
            self._line = line = Line(self._connect(), self._frames(attempt, resume))
        try:
            first = line.first(seconds)
        except grpc.RpcError as exc:
            self._journal.end(attempt)
            if is_stated(exc):
                raise
            line.close()
            refused = self._refusal(_details(exc))
            if refused is not None:
                raise refused from exc
            return None
        if first is None or first.WhichOneof("frame") != "resumed":
            raise WireError(f"trunk at {self._address}: the first frame was no resumed")
        self._progress = self._replied = time.monotonic()
        self._is_carried = True
        self._journal.begin(attempt, first.resumed.taken)
        reached = first.resumed.taken, self._journal.point().received
        self._futile = self._futile + 1 if reached == self._reached else 0
        self._reached = reached
        return line

    def _watch(self) -> None:
        while not self._failed.wait(min(1.0, self._timeout / 4)):
            now = time.monotonic()
            late = now - self._progress > self._timeout, now - self._replied > 2 * self._timeout
            if self._is_carried and any(late) and self._journal.owes:
                seconds = self._timeout if late[0] else 2 * self._timeout
                self.fail(
                    TrunkUnavailableError(
                        f"trunk at {self._address} did not answer within {seconds:g} s"
                    )
                )
        with self._lock:
            line, patience = self._line, _LEAVE_SECONDS if self._is_greeted else 0.0
        line.close(patience)

    def _from_call(self, exc: grpc.RpcError) -> TrunkError:
        if not isinstance(exc, grpc.Call):
            return TrunkUnavailableError(f"trunk at {self._address}: the connection broke")
        return from_status(exc.code(), exc.details(), exc.trailing_metadata(), self._address)


def _until_broken(frames: Iterator[pb.ServerFrame]) -> Iterator[pb.ServerFrame]:
    try:
        yield from frames
    except grpc.RpcError:
        return


def _details(exc: grpc.RpcError) -> str:
    return exc.details() or "" if isinstance(exc, grpc.Call) else ""


def _caused(error: TrunkError, cause: BaseException) -> TrunkError:
    error.__cause__ = cause
    return error
