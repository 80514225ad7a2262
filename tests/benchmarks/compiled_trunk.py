"""What `torch.compile` would do for a trunk whose silos come and go, and at what price.

::

    python tests/benchmarks/compiled_trunk.py

A GPT-2-small trunk with LoRA, one thread: processor time of a forward and backward pass, compiled
over not, in turns, for one session; then the first pass of every further session, whose adapter
comes in beside those that are there, until torch compiles no more. Needs a C++ compiler.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
import typer
from tiny_models import tiny_model

from flower_split.adapters import resolve_lora
from flower_split.adapters.trunk_adapters import TrunkAdapters
from flower_split.config.sections import LoraSettings
from flower_split.segments import PassThrough, Trunk, split_model
from flower_split.segments.layers import find_layers


class Sessions:
    """A trunk, and an adapter for every session on it.

    Args:
        trunk: Its layers are compiled when they first compute.
        adapters: Of the trunk.
        rows: Of a microbatch.
        tokens: Of a row.
    """

    def __init__(self, trunk: Trunk, adapters: TrunkAdapters, rows: int, tokens: int) -> None:
        self._trunk, self._adapters = trunk, adapters
        self._hidden = torch.randn(rows, tokens, trunk.hidden_size)
        self._mask = torch.ones(rows, tokens, dtype=torch.long)
        for layer in find_layers(trunk.model)[1]:
            if not isinstance(layer, PassThrough):
                layer.compile(dynamic=False)

    def add(self, name: str) -> None:
        """Open a session."""
        self._adapters.add(name)

    def step(self, name: str) -> None:
        """The session's forward and backward pass."""
        self._adapters.activate(name)
        leaf = self._hidden.clone().requires_grad_()
        output = self._trunk(leaf, attention_mask=self._mask)
        wanted = [leaf, *self._adapters.named_parameters(name).values()]
        torch.autograd.grad(output, wanted, torch.ones_like(output))


def seconds(work: Callable[[], None]) -> float:
    """Processor seconds of `work`, those of the compilers that it starts not counted."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(layers: int, hidden: int, tokens: int, sessions: int, turns: int) -> dict[str, Any]:
    """The ratio for one session, and wall seconds of the first pass of each."""
    torch.set_num_threads(1)
    model = tiny_model("gpt2", layers, n_embd=hidden, n_head=12, n_positions=tokens)
    plan = resolve_lora(model, LoraSettings())
    _, trunk = split_model(model, 2, 2)
    held = Sessions(trunk.eval(), TrunkAdapters(trunk, plan), rows=2, tokens=tokens)
    ratios, first_passes = list[float](), list[float]()
    for number in range(sessions):
        held.add(name := f"silo{number}")
        began = time.perf_counter()
        held.step(name)
        first_passes.append(time.perf_counter() - began)
        for _ in range(0 if number else turns):
            compiled = seconds(lambda name=name: held.step(name))
            with torch.compiler.set_stance("force_eager"):
                ratios.append(compiled / seconds(lambda name=name: held.step(name)))
    return {
        "compiled_over_not": round(statistics.median(ratios), 3),
        "seconds_of_every_sessions_first_pass": [round(value, 2) for value in first_passes],
    }


def main(sessions: int = 10, turns: int = 20) -> None:
    """Measure, and print one JSON object."""
    warnings.simplefilter("ignore")
    print(json.dumps(measure(12, 768, 128, sessions, turns)))


if __name__ == "__main__":
    typer.run(main)
