"""Log lines of flower_split in Flower's log, which shows only those of its own logger."""

import logging


def join_flower_log() -> None:
    """Show flower_split's log lines where Flower's are shown. Can be called again."""
    ours = logging.getLogger("flower_split")
    for handler in logging.getLogger("flwr").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
