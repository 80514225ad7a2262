"""The answer of a silo that failed: an error reply with its name and the reason, no traceback."""

import logging
from collections.abc import Callable
from functools import wraps

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode

from flower_split.apps.debugging import debugging
from flower_split.errors import FlowerSplitError

logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context], Message]


def answering(handle: Handler) -> Handler:
    """`handle` of a ClientApp, whose errors of flower_split's own become the silo's reply.

    Raised, they would be written by Flower as several tracebacks at the silo and at the server.
    They hold no part of a silo's data, and leave it in either case.
    """

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handle(message, context)
        except FlowerSplitError as error:
            reason = f"silo {silo_name(context)!r}: {error}"
            logger.error("%s", reason, exc_info=debugging())
            return Message(
                Error(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reason), reply_to=message
            )

    return answer


def silo_name(context: Context) -> str:
    """The name of the silo whose node config may itself be what is wrong."""
    for key in ("silo", "partition-id"):
        if str(value := context.node_config.get(key, "")):
            return str(value).replace("'", "").replace("\n", " ")[:128]
    return str(context.node_id)
