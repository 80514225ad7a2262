"""The process of a ready-made app: where its log lines go, and what its allocator keeps."""

from flower_split.apps.logs import join_flower_log
from flower_split.devices import keep_freed_memory


def set_up_process() -> None:
    """Make this process one in which an app runs. Can be called again."""
    join_flower_log()
    keep_freed_memory()
