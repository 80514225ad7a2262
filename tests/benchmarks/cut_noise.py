"""What clipping and noise at the cuts cost: held-out loss over the noise, and the ε it comes to.

::

    python tests/benchmarks/cut_noise.py [--steps 50] [--noise 0.01 0.03 …]

One silo of the quickstart on its own. Rows of h1 and g2 are clipped to the median of their norms
in the first batch, g2's without the rows of padding and prompts, which are zero; then both get
noise of so many times that. ε, at δ = 1e-5, is that of the training's rows alone.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "bench-throughput"))

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from wires import final_loss, quickstart_settings

from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.privacy import Gaussians
from flower_split.segments import resolve_source

NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the first training batch of a silo is like at the cuts."""

    h1: float
    """Median of the norms of h1's rows."""
    g2: float
    """Median of those of g2's rows that have a gradient."""
    width: int
    tokens: int
    """Rows of a batch."""


def rows(settings: dict[str, Any]) -> Rows:
    """The norms at the cuts of the uncut model, before it is trained."""
    config = read_run_config(settings)
    data = silo_batches(config, NodeConfig(partition_id=0, num_partitions=3))
    batch = dict(next(iter(data.train(1))))
    folder = resolve_source(config.model.name).folder
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    output = model(**batch, output_hidden_states=True)
    states: Sequence[Tensor] = output.hidden_states
    last = model.config.num_hidden_layers - config.split.top_layers
    states[last].retain_grad()
    output.loss.backward()
    h1, g2 = states[config.split.bottom_layers].detach(), states[last].grad
    assert g2 is not None
    norms = g2.norm(dim=-1)
    return Rows(
        h1=float(h1.norm(dim=-1).median()),
        g2=float(norms[norms > 0].median()),
        width=h1.shape[-1],
        tokens=h1.shape[0] * h1.shape[1],
    )


def epsilon(noise: float, count: int) -> float:
    """ε of `count` rows of h1 and as many of g2; infinite without noise."""
    if not noise:
        return math.inf
    both = Gaussians().released(sensitivity=2.0, deviation=noise, times=2 * count)
    return both.epsilon(DELTA)


def table(steps: int, noises: Sequence[float]) -> Iterator[str]:
    """A line for every noise, after those of no clipping and of clipping alone."""
    settings = quickstart_settings()
    found = rows(settings)
    clips = {"wire.h1-clip": found.h1, "wire.g2-clip": found.g2}
    yield f"rows of {found.width}: median norm of h1 {found.h1:.3g}, of g2 {found.g2:.3g}"
    yield "noise over clip   over the signal   held-out loss   epsilon"
    yield f"nothing           {'':15}   {final_loss('fp32', steps, settings):13.4f}"
    for noise in (0.0, *noises):
        noisy = {"wire.h1-noise": noise, "wire.g2-noise": noise}
        loss = final_loss("fp32", steps, {**settings, **clips, **noisy})
        yield (
            f"{noise:<15g}   {noise * math.sqrt(found.width):15.2f}   {loss:13.4f}   "
            f"{epsilon(noise, steps * found.tokens):.3g}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--noise", type=float, nargs="*", default=NOISES)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for line in table(asked.steps, asked.noise):
        print(line, flush=True)


if __name__ == "__main__":
    main()
