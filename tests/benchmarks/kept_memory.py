"""What keeping freed memory saves a silo in processor time, and costs it in memory.

::

    python tests/benchmarks/kept_memory.py

The layers that a silo holds of GPT-2 small, two at the bottom and two at the top, with embeddings,
head and LoRA, train on 2 x 128 tokens with one thread, in a process of their own every time: one
that keeps freed memory and one as glibc comes, in turns.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
import typer
from tiny_models import tiny_model

from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings
from flower_split.devices import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Used:
    """By some microbatches after the first ones."""

    seconds: float
    """Of the processor."""
    faults: int
    peak: int
    """The process's, in bytes."""


def train(keep: bool, layers: int, hidden: int, vocabulary: int, tokens: int) -> Used:
    """Forward and backward passes in this process."""
    torch.set_num_threads(1)
    if keep and not keep_freed_memory():
        sys.exit("the allocator is not glibc's, or the environment sets it")
    model = tiny_model(
        "gpt2", layers, n_embd=hidden, n_head=12, vocab_size=vocabulary, n_positions=tokens
    )
    wrapped = wrap(model, resolve_lora(model, LoraSettings()))
    ids = torch.randint(vocabulary, (2, tokens))

    def microbatches(count: int) -> None:
        for _ in range(count):
            wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    microbatches(8)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    microbatches(8)
    seconds, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
    return Used(seconds=seconds, faults=after.ru_minflt - before, peak=after.ru_maxrss * 1024)


def measure(
    layers: int, hidden: int, vocabulary: int, tokens: int, turns: int
) -> dict[str, list[float] | float]:
    """Kept over not kept: processor time and peak, and the page faults both ways."""
    found: dict[bool, list[Used]] = {False: [], True: []}
    for _ in range(turns):
        for keep, used in found.items():
            work = [keep, layers, hidden, vocabulary, tokens]
            done = subprocess.run(
                [sys.executable, __file__, "--work", json.dumps(work)],
                check=True,
                stdout=subprocess.PIPE,
            )
            used.append(Used(**json.loads(done.stdout)))
    pairs = list(zip(found[True], found[False], strict=True))
    return {
        "seconds_kept_over_not": round(
            statistics.median(k.seconds / n.seconds for k, n in pairs), 3
        ),
        "peak_kept_over_not": round(statistics.median(k.peak / n.peak for k, n in pairs), 3),
        "faults_kept": statistics.median(kept.faults for kept, _ in pairs),
        "faults_not_kept": statistics.median(plain.faults for _, plain in pairs),
    }


def main(turns: int = 5, work: Annotated[str, typer.Option(hidden=True)] = "") -> None:
    """Measure, and print one JSON object."""
    if work:  # in a process of its own
        print(json.dumps(asdict(train(*json.loads(work)))))
        return
    print(json.dumps(measure(4, 768, 50257, 128, turns)))


if __name__ == "__main__":
    typer.run(main)
