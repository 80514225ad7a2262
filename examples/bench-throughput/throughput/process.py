"""A process of the benchmark: how it starts, its threads, and whether it keeps freed memory."""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext

import torch

from flower_split.devices import keep_freed_memory

# Python 3.11 looks for them where packages are installed, and not beside the script.
IMPORTS = (
    "flower_split.client",
    "flower_split.server.engine",
    "transformers.models.gpt2.modeling_gpt2",
)


def processes() -> ForkServerContext:
    """For processes that have the same imports, and nothing else of this one or of each other.

    They are forked from one that has done nothing but these imports, which take seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS])
    return context


def set_up(threads: int, *, keep: bool = True) -> None:
    """Give this process so many threads of torch, and the allocator of the ready-made apps."""
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))
