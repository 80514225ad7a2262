"""What flower_split adds to importing torch, transformers and peft, in seconds.

::

    python tests/benchmarks/import_time.py [--repeats 5]

In a deployment every Flower message is a new client process, so this is paid in every round. Each
repetition is a process of its own; what counts is the least, as everything else is noise.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass

_SCRIPT = """
import json, sys, time
import flwr.app, flwr.clientapp
begin = time.perf_counter()
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
theirs = time.perf_counter()
import flower_split.apps.client_app, flower_split.client
ours = time.perf_counter()
print(json.dumps([theirs - begin, ours - theirs, sorted(sys.modules)]))
"""


@dataclass(frozen=True)
class ImportTime:
    """Seconds of the fastest repetition, and what was imported."""

    theirs: float
    """torch, transformers and peft."""
    ours: float
    """What the ready-made ClientApp needs beside them, other packages included."""
    modules: frozenset[str]


def measure(repeats: int) -> ImportTime:
    """The least of `repeats` processes, of both times apart."""
    found = []
    for _ in range(repeats):
        command = [sys.executable, "-c", _SCRIPT]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return ImportTime(
        theirs=min(theirs for theirs, _, _ in found),
        ours=min(ours for _, ours, _ in found),
        modules=frozenset(found[0][2]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    found = measure(parser.parse_args().repeats)
    print(f"torch, transformers, peft: {found.theirs:.2f} s")
    print(f"flower_split beside them:  {found.ours:.2f} s")


if __name__ == "__main__":
    main()
