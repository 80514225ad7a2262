"""Memory of a segment while it is loaded and afterwards, by quantization, against the whole model.

::

    python tests/benchmarks/quantized_loading.py /models/smollm2-135m --bottom 2 --top 2

Every load is a process of its own. Counted is anonymous memory, sampled every two milliseconds,
above what it was after the imports: weight files that are mapped are the system's to drop. The last
line of the output is a JSON object.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from flower_split import load_client_model, load_trunk
from flower_split.segments.loading.quantization import quantization_config

MIB = 1 << 20
KINDS = ("none", "int8", "nf4", "nf4-double")
PARTS = ("silo", "trunk", "whole")


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Peak:
    """The largest `anonymous_bytes` of a while, by a thread that looks."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.most = max(self.most, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def loader(part: str, folder: Path, kind: str, cuts: dict[str, int]) -> Callable[[], Any]:
    """What loads the whole model by transformers, or a party's part of it."""
    if part == "whole":
        settings = quantization_config(kind, torch.float32)
        return lambda: AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=settings
        )
    load: Any = load_client_model if part == "silo" else load_trunk
    return lambda: load(folder, **cuts, quantization=kind)


def measure(part: str, folder: Path, kind: str, cuts: dict[str, int]) -> dict[str, float]:
    """MiB at the peak of loading and afterwards."""
    load = loader(part, folder, kind, cuts)
    with Peak() as peak:
        loaded = load()
    after = anonymous_bytes() - peak.before
    del loaded
    return {"peak": (peak.most - peak.before) / MIB, "after": after / MIB}


def main() -> None:
    """Measure every part with every quantization, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bottom", type=int, default=2)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    cuts = {"bottom_layers": given.bottom, "top_layers": given.top}
    if given.one:
        print(json.dumps(measure(given.one[0], given.folder, given.one[1], cuts)))
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("part", *(f"{kind}: peak, after (MiB)" for kind in KINDS))
    for part in PARTS:
        found[part] = {}
        for kind in KINDS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", part, kind],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[part][kind] = json.loads(done.stdout.splitlines()[-1])
        table.add_row(part, *("{peak:.0f}, {after:.0f}".format(**found[part][k]) for k in KINDS))
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
