"""A connection of the service: a ClientApp hands a message over, or someone asks for the status."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import psutil
from flwr.app import Context, Message

from flower_split.apps.silo_service.flower_messages import read_offer
from flower_split.apps.silo_service.frames import MOST_BYTES, is_gone, receive, send
from flower_split.apps.silo_service.job import Job
from flower_split.apps.silo_service.socket_folder import Peer, check_peer
from flower_split.errors import FlowerSplitError, ServiceError, WireError
from flower_split.proto.silo_pb2 import (
    Answer,
    Greeting,
    Offer,
    Ready,
    Refused,
    Request,
    Status,
    Working,
)

logger = logging.getLogger(__name__)

ASK_SECONDS = 10.0
"""For a greeting, and from Ready to Go."""
OFFER_SECONDS = 60.0
TELL_SECONDS = 60.0
"""In which the ClientApp must have taken the reply."""
WORKING_SECONDS = 5.0
_TICK = 0.5

Handler = Callable[[Message, Context], Message]


class Workplace(Protocol):
    """What a connection needs of the service."""

    greeting: Greeting
    handlers: Mapping[str, Handler]
    turn: threading.Lock
    """Held from before Ready until the message has ended."""
    turn_seconds: float
    stopping: bool

    def check(self, context: Context) -> None:
        """Raise unless a message with `context` can be done here."""
        ...

    def submit(self, job: Job) -> None:
        """Have a job done, and the turn given back."""
        ...

    def abandon(self, job: Job, reason: str) -> None:
        """End a job before it is done."""
        ...

    def status(self) -> Status:
        """What is held and done."""
        ...


class Connection(threading.Thread):
    """The thread of one connection, which it closes.

    Whatever comes is hostile until it is read; it costs this connection alone.
    """

    def __init__(self, connection: socket.socket, service: Workplace) -> None:
        super().__init__(name="silo-service-connection", daemon=True)
        self._connection = connection
        self._service = service

    def run(self) -> None:
        """Answer until the other end has what it wants."""
        with self._connection:
            try:
                peer = check_peer(self._connection)
            except (FlowerSplitError, OSError) as error:
                logger.warning("a connection was refused: %s", error)
                return
            try:
                self._answer(peer)
            except FlowerSplitError as error:
                logger.warning("a connection of process %d ended: %s", peer.pid, error)
                self._say(Answer(refused=Refused(reason=str(error))))

    def refuse(self, refused: Refused) -> None:
        """Close it at once, with a reason."""
        with self._connection:
            self._say(Answer(refused=refused))

    def _answer(self, peer: Peer) -> None:
        asked = self._receive("greeting", ASK_SECONDS)
        if asked.greeting.protocol != self._service.greeting.protocol:
            raise ServiceError(
                f"the silo service speaks version {self._service.greeting.protocol} of its "
                f"protocol, and process {peer.pid} {asked.greeting.protocol}: start the service "
                "again after an upgrade"
            )
        send(self._connection, Answer(greeting=self._service.greeting), seconds=ASK_SECONDS)
        asked = receive(self._connection, Request, seconds=OFFER_SECONDS, most=MOST_BYTES)
        match asked.WhichOneof("body"):
            case "status":
                status = self._service.status()
                send(self._connection, Answer(status=status), seconds=ASK_SECONDS)
            case "offer":
                self._take(asked.offer, peer)
            case found:
                raise WireError(f"{found} came, expected an offer or the question for the status")

    def _take(self, offer: Offer, peer: Peer) -> None:
        message, context = read_offer(offer)
        job = Job(message=message, context=context, begun=_started(peer))
        kind, _, name = message.metadata.message_type.partition(".")
        if kind not in self._service.handlers or name not in ("", "default"):
            raise WireError(f"it takes no message of type {message.metadata.message_type!r}")
        self._service.check(context)
        if not self._service.turn.acquire(timeout=self._service.turn_seconds):
            raise ServiceError("the silo service works on another message")
        try:
            if self._service.stopping:
                raise ServiceError("the silo service is being stopped")
            send(self._connection, Answer(ready=Ready()), seconds=ASK_SECONDS)
            self._receive("go", ASK_SECONDS)
        except BaseException:
            self._service.turn.release()
            raise
        self._service.submit(job)
        self._follow(job)

    def _follow(self, job: Job) -> None:
        """Say that it works until it has ended, and then how; end it where nobody listens."""
        said = time.monotonic()
        while not job.ended.wait(_TICK):
            try:
                if is_gone(self._connection):
                    raise ServiceError("its ClientApp is gone")
                if time.monotonic() - said >= WORKING_SECONDS:
                    said = time.monotonic()
                    send(self._connection, Answer(working=Working()), seconds=TELL_SECONDS)
            except FlowerSplitError as error:
                self._service.abandon(job, str(error))
                logger.warning("%s is ended: %s", job.title, error)
                return
        assert job.answer is not None
        send(self._connection, job.answer, seconds=TELL_SECONDS)

    def _receive(self, wanted: str, seconds: float) -> Request:
        found = receive(self._connection, Request, seconds=seconds)
        if (kind := found.WhichOneof("body")) != wanted:
            raise WireError(f"{kind} came, expected {wanted}")
        return found

    def _say(self, answer: Answer) -> None:
        try:
            send(self._connection, answer, seconds=1.0)
        except FlowerSplitError as error:
            logger.debug("nobody was told: %s", error)


def _started(peer: Peer) -> float:
    """When the peer's process was started, in seconds since the epoch; now where it has ended."""
    try:
        return float(psutil.Process(peer.pid).create_time())
    except psutil.Error:
        return time.time()
