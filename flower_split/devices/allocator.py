"""The allocator of the CPU: whether freed memory stays with the process, to be used again."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1 << 20
LARGEST_KEPT = 128 * MIB
"""Bytes: a larger block is given back when it is freed; in further threads, one above `HEAP`."""
MOST_KEPT = 256 * MIB
"""Bytes that are free at the heap's end and kept."""
HEAP = 64 * MIB
"""Bytes of a heap that glibc makes for a further thread; it is kept where that many may be free."""

SMALLEST_GIVEN_BACK = MIB // 4
"""Bytes of a block that is given back at once, while blocks are."""

_MALLOPT = {
    "MMAP_THRESHOLD": (-3, LARGEST_KEPT),
    "TRIM_THRESHOLD": (-1, MOST_KEPT),
    "TOP_PAD": (-2, HEAP),
}
"""Numbers from glibc's `malloc.h`. The first one is the one that an old glibc refuses."""
_AS_ADJUSTED = {"MMAP_THRESHOLD": (-3, 32 * MIB), "TRIM_THRESHOLD": (-1, 64 * MIB)}
"""What glibc comes to by itself in a process that has freed large blocks."""
_keeps = False
"""Whether `keep_freed_memory` holds in this process."""


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
    global _keeps
    mallopt = ctypes.CDLL(None).mallopt
    # Each of the others alone would stop glibc from adjusting the size of blocks that it keeps.
    _keeps = all(mallopt(parameter, value) == 1 for parameter, value in _MALLOPT.values())
    return _keeps


@contextmanager
def giving_back_freed_memory() -> Iterator[None]:
    """Have glibc give blocks back to the operating system when they are freed, for a while.

    For making a model of tensors that are larger than its own: else what they leave is in pieces
    into which only small blocks fit. What the environment sets stays, as for `keep_freed_memory`.
    """
    if not is_glibc():
        yield
        return
    libc = ctypes.CDLL(None)
    adjusts = not _is_set_by_environment()
    if adjusts:
        libc.mallopt(_MALLOPT["MMAP_THRESHOLD"][0], SMALLEST_GIVEN_BACK)
    try:
        yield
    finally:
        if adjusts:
            for parameter, value in (_MALLOPT if _keeps else _AS_ADJUSTED).values():
                libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Have glibc give what is free to the operating system, once."""
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
