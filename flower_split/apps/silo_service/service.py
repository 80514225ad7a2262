"""The service: one message after the other in the thread that runs it, others listen and wait.

The work is done by the process's main thread, as it is in a ClientApp's own process, and one
message at a time, because random numbers are the process's.
"""

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue

from flower_split.apps.answering import answering
from flower_split.apps.silo_service.connection import Connection, Handler
from flower_split.apps.silo_service.flower_messages import done_of
from flower_split.apps.silo_service.greeting import greeting
from flower_split.apps.silo_service.holdings import Holdings
from flower_split.apps.silo_service.job import Job
from flower_split.client.statistics import process_begun
from flower_split.errors import FlowerSplitError
from flower_split.proto.silo_pb2 import Answer, Failed, Refused, Status

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
DRAIN_SECONDS = 45.0
"""For which a message in work may go on after the service was told to stop."""
UNWIND_SECONDS = 5.0
"""In which an interrupted one has told the trunk."""
_TICK = 0.5


class Interrupted(BaseException):
    """The message in work is to end, raised wherever its thread is."""


class Service:
    """What `flower-split silo serve` runs.

    Args:
        listener: Where ClientApps connect.
        handlers: What is done with a message, by its kind.
        holdings: What is kept between messages.
        interrupt: Has `interrupting` called in the thread that runs `run`, wherever it is.
        give_up: Ends the process at once, for a thread that cannot be interrupted.
        idle_seconds: After the last message, before all that is kept is given back.
        drain_seconds: For which a message in work may go on after `stop`.
        turn_seconds: For which a message waits for the one in work.
    """

    def __init__(
        self,
        listener: socket.socket,
        handlers: Mapping[str, Handler],
        holdings: Holdings,
        *,
        interrupt: Callable[[], None],
        give_up: Callable[[], None],
        idle_seconds: float = 1800.0,
        drain_seconds: float = DRAIN_SECONDS,
        turn_seconds: float = 10.0,
    ) -> None:
        self.handlers: Mapping[str, Handler] = {
            kind: answering(handle) for kind, handle in handlers.items()
        }
        self.check = holdings.check
        self.greeting = greeting()
        self.turn = threading.Lock()
        self.turn_seconds = turn_seconds
        self.stopping = False
        self._listener = listener
        self._holdings = holdings
        self._interrupt = interrupt
        self._give_up = give_up
        self._idle_seconds = idle_seconds
        self._drain_seconds = drain_seconds
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._job: Job | None = None
        self._interruptible = False
        self._ended = threading.Event()
        self._connections: set[Connection] = set()
        self._started = self._last = time.monotonic()
        self._done = self._failed = 0

    def run(self) -> None:
        """Serve until `stop`; the message in work is then done, or ended with a reason."""
        acceptor = threading.Thread(target=self._accept, name="silo-service-accept", daemon=True)
        acceptor.start()
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_left())
            except Empty:
                self._give_back()
                continue
            if job is None:
                break
            self._work(job)
        # Whoever has the turn now may have been told to begin; nobody else gets it.
        while not self.turn.acquire(timeout=0.1):
            with suppress(Empty):
                if (job := self._jobs.get(block=False)) is not None:
                    self._work(job)
        self._ended.set()
        acceptor.join()

    def stop(self) -> None:
        """Take no further message, and end when the one in work has; for signal handlers too."""
        self.stopping = True
        self._jobs.put(None)

    def submit(self, job: Job) -> None:
        """Have a job done; its turn must have been taken, and is given back when it has ended."""
        self._job = job
        self._jobs.put(job)

    def abandon(self, job: Job, reason: str) -> None:
        """End a job before it is done, because of `reason`."""
        job.interrupted = reason
        self._interrupt()

    def interrupting(self) -> None:
        """Raise `Interrupted` where the job in work is to end; called in the thread of `run`."""
        if self._interruptible and self._job is not None and self._job.interrupted:
            self._interruptible = False
            raise Interrupted

    def status(self) -> Status:
        """What is held and done."""
        now, job = time.monotonic(), self._job
        found = self._holdings.status()
        found.seconds = now - self._started
        found.work = "" if job is None else job.title
        found.done, found.failed = self._done, self._failed
        found.idle_seconds = 0.0 if job is not None else now - self._last
        found.most_idle_seconds = self._idle_seconds
        return found

    def _work(self, job: Job) -> None:
        began = time.monotonic()
        try:
            # Set last and taken back first: in between, and there only, `Interrupted` is raised.
            self._interruptible = True
            self.interrupting()
            answer, whole = self._attempt(job)
            self._interruptible = False
        except Interrupted:
            answer, whole = Answer(failed=Failed(reason=job.interrupted)), False
        self._done, self._failed = self._done + whole, self._failed + (not whole)
        if not whole:
            self._holdings.drop()
        self._last = time.monotonic()
        logger.info(
            "%s: %s in %.1f s", job.title, "done" if whole else "failed", self._last - began
        )
        self._job = None
        job.end(answer)
        self.turn.release()

    def _attempt(self, job: Job) -> tuple[Answer, bool]:
        """The answer to a message, and whether it was done as it should."""
        kind = job.message.metadata.message_type.partition(".")[0]
        try:
            self._holdings.begin(job.message, job.context)
            with process_begun(job.begun):
                reply = self.handlers[kind](job.message, job.context)
            return Answer(done=done_of(reply, job.context)), not reply.has_error()
        except Exception as error:
            # A foreign error's text may quote a user's.
            said = str(error) if isinstance(error, FlowerSplitError) else type(error).__name__
            logger.exception("a message failed")
            return Answer(failed=Failed(reason=f"the message failed in it: {said}")), False

    def _idle_left(self) -> float | None:
        if self._holdings.is_empty:
            return None
        return max(0.0, self._last + self._idle_seconds - time.monotonic())

    def _give_back(self) -> None:
        logger.info("no message for %g s: model and data are given back", self._idle_seconds)
        self._holdings.drop()

    def _accept(self) -> None:
        """Take connections until `stop`; then see to it that the message in work ends."""
        while not self.stopping:
            if not select.select([self._listener], [], [], _TICK)[0]:
                continue
            try:
                taken, _ = self._listener.accept()
            except OSError:
                continue
            connection = Connection(taken, self)
            self._connections = {one for one in self._connections if one.is_alive()}
            if len(self._connections) >= MOST_CONNECTIONS:
                connection.refuse(Refused(reason="it has too many connections"))
                continue
            self._connections.add(connection)
            connection.start()
        self._listener.close()
        self._drain()

    def _drain(self) -> None:
        self._ended.wait(self._drain_seconds)
        while not self._ended.wait(_TICK):
            if (job := self._job) is None:
                continue
            reason = "it was stopped, and the message did not end in time"
            self.abandon(job, reason)
            if not job.ended.wait(UNWIND_SECONDS):
                job.fail(reason)
                self._join(UNWIND_SECONDS)
                self._give_up()
                return
        self._join(UNWIND_SECONDS)

    def _join(self, seconds: float) -> None:
        """Wait until the connections have told what became of their messages."""
        end = time.monotonic() + seconds
        for connection in list(self._connections):
            connection.join(max(0.0, end - time.monotonic()))
