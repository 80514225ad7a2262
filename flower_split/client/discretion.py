"""Discretion: what fails in a silo reaches the server without its text, which may be a user's."""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flower_split.errors import FlowerSplitError, SiloError

logger = logging.getLogger(__name__)


@contextmanager
def discreet() -> Iterator[None]:
    """Let flower_split's own errors pass; log every other one and raise a `SiloError` instead."""
    try:
        yield
    except FlowerSplitError:
        raise
    except Exception as error:
        logger.exception("the silo's own code failed")
        raise SiloError(_outline(error)) from None


def _outline(error: BaseException) -> str:
    """Kind and place of `error`, and what the system says of it; without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    # The system's own words for a number have nothing of a user's.
    number = error.errno if isinstance(error, OSError) else None
    said = f" ({os.strerror(number)})" if isinstance(number, int) and number > 0 else ""
    return f"{type(error).__name__}{said}{place}; the silo's own log has the rest"
