"""A process of the benchmark: its threads, and whether it keeps freed memory."""

import os

import torch

from flower_split.devices import keep_freed_memory


def set_up(threads: int, *, keep: bool = True) -> None:
    """Give this process so many threads of torch, and the allocator of the ready-made apps."""
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))
