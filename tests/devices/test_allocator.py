"""Freed memory is kept by the process of an app, unless its environment says otherwise."""

import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from flower_split.devices import allocator
from flower_split.reporting.machine import resident_bytes

glibc = pytest.mark.skipif(not allocator.is_glibc(), reason="the allocator is not glibc's")

MIB = 1 << 20
BLOCK = 48 * MIB
PAGES = BLOCK // 4096
MAKE_BLOCKS = """
import resource, sys, threading
import torch
from flower_split.devices import keep_freed_memory

torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
bytes_of_a_block = int(sys.argv[2])

def usage():
    return resource.getrusage(resource.RUSAGE_SELF)

def make_blocks(count):
    for _ in range(count):
        torch.ones(bytes_of_a_block // 4)

def faults():
    make_blocks(16)  # glibc before 2.38 needs some to find out that they fit
    before = usage().ru_minflt
    make_blocks(4)
    found.append((usage().ru_minflt - before) / 4)

found = []
before = usage().ru_maxrss
faults()
thread = threading.Thread(target=faults)
thread.start()
thread.join()
print(int(kept), (usage().ru_maxrss - before) * 1024, *found)
"""


@dataclass(frozen=True)
class Made:
    """Blocks made one after the other, in the first thread and then in another."""

    kept: bool
    """Whether the memory was said to be kept."""
    peak: int
    """Bytes."""
    faults: tuple[float, ...]
    """Page faults of a block, by thread."""


def make_blocks(how: str, size: int = BLOCK, **environment: str) -> Made:
    """What a process of its own did."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain.pop("GLIBC_TUNABLES", None)
    plain.pop("THP_MEM_ALLOC_ENABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", MAKE_BLOCKS, how, str(size)],
        env=plain | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    kept, peak, *faults = done.stdout.split()
    return Made(kept == "1", int(peak), tuple(map(float, faults)))


@pytest.mark.exhaustive
@glibc
def test_the_next_block_costs_no_page_faults() -> None:
    assert min(make_blocks("leave").faults) > PAGES / 1024  # where all pages are huge, fewer
    made = make_blocks("keep")
    assert made.kept
    assert max(made.faults) < PAGES / 1024


@pytest.mark.exhaustive
@glibc
def test_a_block_that_is_too_large_is_given_back() -> None:
    size = allocator.LARGEST_KEPT + 16 * MIB
    made = make_blocks("keep", size)
    assert made.kept
    assert made.peak < 1.5 * size


@glibc
def test_what_is_free_is_given_back_for_a_while() -> None:
    with allocator.giving_back_freed_memory():
        blocks = [bytearray(64 * 1024) for _ in range(512)]
        del blocks[::2]  # in pieces, of which the heap's end is none
        before = resident_bytes()
    assert before - resident_bytes() > 8 * MIB


@pytest.mark.exhaustive
@glibc
@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB)},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"},
    ],
    ids=lambda environment: "=".join(*environment.items()),
)
def test_what_the_environment_sets_stays(environment: dict[str, str]) -> None:
    made = make_blocks("keep", **environment)
    assert not made.kept
    assert min(made.faults) > PAGES / 1024


@glibc
def test_a_glibc_that_refuses_the_size_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return 0

    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert not allocator.keep_freed_memory()
    assert asked == [(-3, allocator.LARGEST_KEPT)]


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def confstr(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.os, "confstr", confstr)
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory()
