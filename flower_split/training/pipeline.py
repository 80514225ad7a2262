"""The pipeline: several microbatches on their way at once, so that no stage waits for another.

::

    silo    F0 F1 F2 F3 T0    T1    B0 F4 T2    B1 F5 T3 …      F  bottom's forward pass
    trunk      f0  f1  f2  f3  b0  b1  f4  b2  f5  b3 …         T  top's forward and backward pass
                                                                B  bottom's backward pass

Each of F, T and B takes the microbatches in their order, and so does the trunk. Every tensor's
gradient is therefore added up in that order, at whatever time a reply arrives and however many
microbatches are in flight: the depth is a matter of time and memory alone.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, wait
from operator import length_hint
from typing import TypeVar

from flower_split.training.stages import Passage

Item = TypeVar("Item")


def run_pipeline(
    items: Iterable[Item],
    depth: int,
    start: Callable[[Item], Passage],
    turn: Callable[[Item, Passage], None],
) -> float:
    """Send every item through its stages; returns the seconds in which there was nothing to do.

    When something raises, whatever is on its way is abandoned.

    Args:
        items: Taken one by one, when their turn to start has come. Where they tell how many
            they are, the last ones are finished sooner.
        depth: Items between the begin of `start` and the end of `Passage.finish`, at most.
        start: F in the diagram.
        turn: T: `Passage.output`, and `Passage.backward` where there are gradients.
    """
    source = iter(items)
    expected = length_hint(items, sys.maxsize)
    started, more = 0, True
    forward: deque[tuple[Item, Passage]] = deque()
    backward: deque[Passage] = deque()
    waited = 0.0
    try:
        while more or forward or backward:
            turns = bool(forward) and _is_ready(forward[0][1])
            finishes = bool(backward) and _is_ready(backward[0])
            starts = more and len(forward) + len(backward) < depth
            # What makes room for another item comes first. After the last one, what gives the
            # trunk work does: the last B's are then computed beside the trunk's backward passes.
            if turns and (started >= expected or not (finishes or starts)):
                turn(*forward[0])
                backward.append(forward.popleft()[1])
            elif finishes:
                backward[0].finish()
                backward.popleft()
            elif starts:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                else:
                    started += 1
                    forward.append((item, start(item)))
            else:
                waited += _wait([*[passage for _, passage in forward][:1], *[*backward][:1]])
    finally:
        for passage in (*backward, *(passage for _, passage in forward)):
            passage.abandon()
    return waited


def _is_ready(passage: Passage) -> bool:
    return passage.awaited is None or passage.awaited.done()


def _wait(passages: list[Passage]) -> float:
    """Wait until one of the passages can go on; returns the seconds."""
    began = time.perf_counter()
    wait([p.awaited for p in passages if p.awaited is not None], return_when=FIRST_COMPLETED)
    return time.perf_counter() - began
