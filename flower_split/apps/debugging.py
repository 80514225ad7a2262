"""Tracebacks: of errors that explain themselves, only where `FLOWER_SPLIT_DEBUG` asks for them.

Flower prints a traceback of whatever an app raises, some of them twice. An error of flower_split's
own says what was expected, what came and what to do; its traceback says nothing more to a user.
"""

import logging
import os
import sys

from flower_split.errors import FlowerSplitError

DEBUG = "FLOWER_SPLIT_DEBUG"
"""Environment variable; any value but an empty one or 0 shows tracebacks."""


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


class WithoutTracebacks(logging.Filter):
    """Of a log record about an error of flower_split's own: its text, and no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; one with a traceback becomes one without."""
        if debugging():
            return True
        if record.exc_info and isinstance(error := record.exc_info[1], FlowerSplitError):
            record.msg, record.args = "%s: %s", (record.getMessage(), error)
            record.exc_info = record.exc_text = None
        elif isinstance(sys.exc_info()[1], FlowerSplitError):
            return not record.getMessage().startswith("Traceback (most recent call last)")
        return True
