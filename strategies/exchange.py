"""One exchange of messages with the silos: wait for nodes, send, gather replies in time."""

import logging
import time
from collections.abc import Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from flower_split.errors import RoundError

logger = logging.getLogger(__name__)

FIRST_POLL, SLOWEST_POLL = 0.05, 0.5
"""Seconds between two looks for replies: at first, and at most."""

NOTICE_EVERY = 10.0
"""Seconds between two log lines while silos are missing."""


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> None:
    """Return as soon as `least` nodes are connected.

    Raises:
        RoundError: fewer were connected when `timeout` seconds had passed.
    """
    start = time.monotonic()
    noticed = start
    while (connected := len(list(grid.get_node_ids()))) < least:
        now = time.monotonic()
        if now - start > timeout:
            raise RoundError(
                f"only {connected} of {least} silos connected within {timeout:g} s: start the "
                "others, or lower strategy.min-nodes"
            )
        if now - noticed > NOTICE_EVERY:
            noticed = now
            logger.info("waiting for silos: %d of %d are connected", connected, least)
        time.sleep(SLOWEST_POLL)


def exchange(grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
    """Send `messages` and return the replies that came within `timeout` seconds.

    Polls by itself, because Flower's own loop looks for replies every three seconds only.

    Raises:
        RoundError: no message could be sent.
    """
    sent = [message_id for message_id in grid.push_messages(messages) if message_id]
    if messages and not sent:
        raise RoundError(
            f"none of {len(messages)} messages could be sent: Flower's SuperLink refused them; "
            "its log says why"
        )
    waiting, replies = set(sent), list[Message]()
    deadline, pause = time.monotonic() + timeout, FIRST_POLL
    while waiting:
        came = list(grid.pull_messages(waiting))
        replies += came
        waiting -= {reply.metadata.reply_to_message_id for reply in came}
        remaining = deadline - time.monotonic()
        if not waiting or remaining <= 0:
            break
        pause = FIRST_POLL if came else min(1.5 * pause, SLOWEST_POLL)
        time.sleep(min(pause, remaining))
    return replies
