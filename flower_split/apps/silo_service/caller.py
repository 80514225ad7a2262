"""The caller: a ClientApp's process hands its message to the silo's service, and has the reply.

It imports neither torch nor transformers. What goes wrong before the service was told to begin is
a `NotHandedError`: nothing was done with the message, and this process does it itself. What goes
wrong later is a `ServiceError`: the session at the trunk may have begun, whose ticket counts once,
so the message is answered by an error and not done twice.
"""

import math
import socket
import time
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message

from flower_split.apps.silo_service.flower_messages import offer_of, read_done
from flower_split.apps.silo_service.frames import (
    MOST_BYTES,
    GoneError,
    SilentError,
    receive,
    send,
)
from flower_split.apps.silo_service.greeting import difference, greeting
from flower_split.apps.silo_service.socket_folder import connected
from flower_split.errors import FlowerSplitError, ServiceError, WireError
from flower_split.proto.silo_pb2 import Answer, Done, Go, Offer, Request, Status, StatusRequest

KEY = "service-dir"
"""Of the node config."""
CONNECT_SECONDS = 5.0
TURN_SECONDS = 30.0
"""For which the service may keep an offer waiting; it has answered by then, unless it hangs."""
SEND_SECONDS = 60.0
SILENT_SECONDS = 60.0
"""A service that works says so much more often."""
GRACE_SECONDS = 60.0
"""After the round's own end."""
LONGEST_SECONDS = 7 * 86400.0


class NotHandedError(ServiceError):
    """The service has not begun: the message can be done elsewhere."""


def service_folder(context: Context) -> Path | None:
    """The folder of the silo's service by its node config; None where it names none.

    A value that is no absolute path names none here: `NodeConfig` says so.
    """
    named = context.node_config.get(KEY, "")
    if not isinstance(named, str) or "\0" in named or not Path(named).is_absolute():
        return None
    return Path(named)


def hand_over(
    message: Message,
    context: Context,
    folder: Path,
    *,
    silent_seconds: float = SILENT_SECONDS,
    turn_seconds: float = TURN_SECONDS,
) -> Message:
    """The reply that the service in `folder` makes; the context's state is then what it left.

    Args:
        message: A message of the ready-made ClientApp's kinds.
        context: The ClientApp's.
        folder: The service's.
        silent_seconds: For which a service that works may say nothing.
        turn_seconds: In which it must say whether it takes the message.

    Raises:
        NotHandedError: nothing was done with the message.
        ServiceError: something may have been done with it, and no reply will come.
    """
    try:
        offer = offer_of(message, context)
        if offer.ByteSize() > MOST_BYTES:
            raise WireError(f"the message has more than the {MOST_BYTES} bytes that it takes")
        connection = connected(folder, CONNECT_SECONDS)
    except FlowerSplitError as error:
        raise NotHandedError(str(error)) from error
    with connection:
        try:
            _offer(connection, offer, turn_seconds)
            send(connection, Request(go=Go()), seconds=CONNECT_SECONDS)
        except FlowerSplitError as error:
            raise NotHandedError(f"the silo service at {folder}: {error}") from error
        del offer
        try:
            done = _wait(connection, silent_seconds, time.monotonic() + _most_seconds(message))
            reply, state = read_done(done)
        except FlowerSplitError as error:
            raise ServiceError(
                f"the silo service at {folder}: {error}. What it had begun may count at the trunk, "
                "so the message is not done again; the next one is not affected. Its own log has "
                "the rest"
            ) from error
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ServiceError(f"the silo service at {folder} sent the reply to another message")
    context.state = state
    return reply


def ask_status(folder: Path, *, seconds: float = CONNECT_SECONDS) -> Status:
    """What the service in `folder` holds and does.

    Raises:
        ServiceError, WireError: no service of this version answers there.
        UnsafeFolderError: the folder is not this user's alone.
    """
    with connected(folder, seconds) as connection:
        found = _asked(connection, Request(greeting=greeting()), seconds)
        if found.WhichOneof("body") == "greeting":
            found = _asked(connection, Request(status=StatusRequest()), seconds)
        if found.WhichOneof("body") != "status":
            raise ServiceError(
                f"the silo service at {folder} tells no status: "
                f"{found.refused.reason or 'it is of another version'}"
            )
        return found.status


def _offer(connection: socket.socket, offer: Offer, turn_seconds: float) -> None:
    """Have the service ready to begin; what it answers instead is raised."""
    own = greeting()
    answered = _asked(connection, Request(greeting=own), turn_seconds)
    _expect(answered, "greeting")
    if differs := difference(answered.greeting, own):
        raise ServiceError(
            f"{differs}: start the service from the SuperNode's environment, and again after an "
            "upgrade"
        )
    _expect(_asked(connection, Request(offer=offer), turn_seconds), "ready")


def _asked(connection: socket.socket, request: Request, seconds: float) -> Answer:
    """The answer to a request; also that of a service which has closed before it took it."""
    with suppress(GoneError):
        send(connection, request, seconds=SEND_SECONDS)
    return receive(connection, Answer, seconds=seconds)


def _expect(answered: Answer, wanted: str) -> None:
    found = answered.WhichOneof("body")
    if found == "refused":
        raise ServiceError(answered.refused.reason[:1000])
    if found != wanted:
        raise WireError(f"it answered {found}, expected {wanted}")


def _wait(connection: socket.socket, silent_seconds: float, end: float) -> Done:
    """What the service has done, for which it may take until `end`."""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise SilentError("it has not ended with the round that the message is of")
        try:
            answered = receive(
                connection, Answer, seconds=min(silent_seconds, left), most=MOST_BYTES
            )
        except GoneError as error:
            raise GoneError("it ended in the middle of this message") from error
        except SilentError:
            if left > silent_seconds:
                raise SilentError(
                    f"it hangs: it said nothing for {silent_seconds:g} s in the middle of this "
                    "message; stop it if it does not end by itself"
                ) from None
            continue
        match answered.WhichOneof("body"):
            case "working":
                continue
            case "done":
                return answered.done
            case "failed":
                raise ServiceError(answered.failed.reason[:1000])
            case found:
                raise WireError(f"it answered {found}, expected done")


def _most_seconds(message: Message) -> float:
    """For how long a reply can be of use: until the message's round has ended."""
    seconds: object = message.metadata.ttl
    if message.has_content():
        for fields in message.content.config_records.values():
            seconds = fields.get("split.seconds", seconds)
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        seconds = message.metadata.ttl
    return min(max(float(seconds), 0.0), LONGEST_SECONDS) + GRACE_SECONDS
