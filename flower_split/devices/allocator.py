"""The allocator of the CPU: whether freed memory stays with the process, to be used again."""

import ctypes
import os
import sys

MIB = 1 << 20
LARGEST_KEPT = 128 * MIB
"""Bytes: a larger block is given back when it is freed; in further threads, one above `HEAP`."""
MOST_KEPT = 256 * MIB
"""Bytes that are free at the heap's end and kept."""
HEAP = 64 * MIB
"""Bytes of a heap that glibc makes for a further thread; it is kept where that many may be free."""

_MALLOPT = {
    "MMAP_THRESHOLD": (-3, LARGEST_KEPT),
    "TRIM_THRESHOLD": (-1, MOST_KEPT),
    "TOP_PAD": (-2, HEAP),
}
"""Numbers from glibc's `malloc.h`. The first one is the one that an old glibc refuses."""


def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed tensors for the next ones, in this process.

    glibc gives every block of more than 32 MiB back to the operating system, and the next one of
    that size is paid for with a page fault for every 4 KiB. A language model's head makes several
    such blocks a microbatch: its logits, their softmax and their gradient. Most that are kept cost
    nothing the next time, and the process is larger by some of them. Where the blocks are larger
    than `LARGEST_KEPT`, the faults are few beside the computation, and they are given back as
    before. The parameters are those of mallopt(3).

    Returns:
        Whether anything changed: not without glibc, not where the environment sets the allocator
        already (`MALLOC_…_` or `GLIBC_TUNABLES`, see mallopt(3)), and not where glibc is too old
        to take the size.
    """
    if not is_glibc() or _is_set_by_environment():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Each of the others alone would stop glibc from adjusting the size of blocks that it keeps.
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOPT.values())


def give_back_freed_memory() -> None:
    """Have glibc give all free memory of this process back to the operating system.

    For after a model has been made of tensors that are larger than its own: what they have left
    free is in pieces that only small blocks fit into.
    """
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def is_glibc() -> bool:
    """Whether this process's C library is glibc."""
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # musl knows no such name
        return False


def _is_set_by_environment() -> bool:
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return True
    return any(f"MALLOC_{name}_" in os.environ for name in (*_MALLOPT, "MMAP_MAX"))
