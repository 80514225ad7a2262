"""The process of a ready-made app: where its log lines go, and what its allocator keeps."""

import logging

from flower_split.devices import keep_freed_memory


def set_up_process() -> None:
    """Make this process one in which an app runs. Can be called again."""
    join_flower_log()
    keep_freed_memory()


def join_flower_log() -> None:
    """Show flower_split's log lines where Flower's are shown. Can be called again."""
    ours = logging.getLogger("flower_split")
    for handler in logging.getLogger("flwr").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
