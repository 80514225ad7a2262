"""`resident`: a ClientApp's handler whose messages go to the silo's service where it has one."""

import logging
from collections.abc import Callable
from functools import wraps

from flwr.app import Context, Message

from flower_split.apps.silo_service.caller import NotHandedError, hand_over, service_folder

logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context], Message]


def resident(handle: Handler) -> Handler:
    """`handle`, done by the service that the node config names, and here where that cannot be."""

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        folder = service_folder(context)
        if folder is None:
            return handle(message, context)
        from flower_split.apps.process import join_flower_log

        join_flower_log()
        try:
            return hand_over(message, context, folder)
        except NotHandedError as error:
            logger.warning("this process does its message itself: %s", error)
        return handle(message, context)

    return answer
