"""One exchange of messages with the silos: wait for nodes, send, gather replies in time."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from flower_split.errors import RoundError, SuperLinkError

logger = logging.getLogger(__name__)

FIRST_POLL, SLOWEST_POLL = 0.05, 0.5
"""Seconds between two looks for replies: at first, and at most."""

NOTICE_EVERY = 10.0
"""Seconds between two log lines while silos are missing."""


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """The ids of the connected nodes, as soon as they are at least `least`.

    Raises:
        RoundError: fewer were connected when `timeout` seconds had passed.
        SuperLinkError: the run was stopped, or the SuperLink is gone.
    """
    start = time.monotonic()
    noticed = start
    while len(nodes := _nodes(grid)) < least:
        now = time.monotonic()
        if now - start > timeout:
            raise RoundError(
                f"only {len(nodes)} of {least} silos connected within {timeout:g} s: start the "
                "others, or lower strategy.min-nodes"
            )
        if now - noticed > NOTICE_EVERY:
            noticed = now
            logger.info("waiting for silos: %d of %d are connected", len(nodes), least)
        time.sleep(SLOWEST_POLL)
    return nodes


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    timeout: float,
    *,
    is_lost: Callable[[str], bool] = lambda _: False,
    on_look: Callable[[], None] = lambda: None,
) -> list[Message]:
    """Send `messages` and return the replies that came within `timeout` seconds.

    Polls by itself, because Flower's own loop looks for replies every three seconds only. A message
    is given up when a look that began after it was lost brings no reply either: one look can take
    long, since Flower waits in it for all the tensors of a reply that has been announced.

    Args:
        grid: Flower's grid.
        messages: To silos, one for each.
        timeout: Seconds to wait for replies.
        is_lost: Whether no reply to the message of this id is to be expected any more.
        on_look: Called before every look for replies.

    Raises:
        RoundError: no message could be sent.
        SuperLinkError: the run was stopped, or the SuperLink is gone.
    """
    with _served():
        sent = [message_id for message_id in grid.push_messages(messages) if message_id]
    if messages and not sent:
        raise RoundError(
            f"none of {len(messages)} messages could be sent: Flower's SuperLink refused them; "
            "its log says why"
        )
    waiting, replies = set(sent), list[Message]()
    deadline, pause = time.monotonic() + timeout, FIRST_POLL
    while waiting:
        on_look()
        lost = {message_id for message_id in waiting if is_lost(message_id)}
        with _served():
            # By position: the parameter has another name in Flower 1.43.
            came = list(grid.pull_messages(waiting))
        replies += came
        waiting -= {reply.metadata.reply_to_message_id for reply in came}
        remaining = deadline - time.monotonic()
        if remaining <= 0 or waiting <= lost:
            break
        pause = FIRST_POLL if came else min(1.5 * pause, SLOWEST_POLL)
        time.sleep(min(pause, remaining))
    return replies


def _nodes(grid: Grid) -> list[int]:
    with _served():
        return list(grid.get_node_ids())


@contextmanager
def _served() -> Iterator[None]:
    """Map what Flower's HTTP client raises when the SuperLink does not serve the run any more."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise SuperLinkError(
            f"the SuperLink serves this run no longer (HTTP {error.response.status_code}): it was "
            "stopped with `flwr stop`, or has failed there; `flwr list` says which"
        ) from error
    except httpx.HTTPError as error:
        raise SuperLinkError(
            f"the SuperLink cannot be reached ({type(error).__name__}): its process has ended, or "
            "the network between it and the ServerApp has"
        ) from error
