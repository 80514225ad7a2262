"""The process of a ready-made app: where its log lines go, and what its allocator keeps."""

import logging

from flower_split.apps.debugging import WithoutTracebacks


def set_up_process() -> None:
    """Make this process one in which an app runs. Can be called again."""
    # Imported late: the log of a process that hands its messages over needs no torch.
    from flower_split.devices import keep_freed_memory

    join_flower_log()
    keep_freed_memory()


def join_flower_log() -> None:
    """Show flower_split's log lines where Flower's are shown, and its errors without tracebacks.

    Can be called again.
    """
    ours, flowers = logging.getLogger("flower_split"), logging.getLogger("flwr")
    if not any(isinstance(one, WithoutTracebacks) for one in flowers.filters):
        flowers.addFilter(WithoutTracebacks())
    for handler in flowers.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
