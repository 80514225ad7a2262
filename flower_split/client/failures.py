"""Failures of a silo: what may be said about them outside of it.

Flower sends an exception's text to the server. Errors of flower_split are worded so that they
carry no data; any other exception may quote a text or a token, so only its kind and place leave.
"""

import logging
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
        raise SiloError(outline(error)) from None


def outline(error: BaseException) -> str:
    """Kind and place of `error`, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}; the silo's own log has the rest"
