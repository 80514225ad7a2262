"""Seconds and memory of the server's aggregation, for a 7B-shaped adapter from many silos.

The shapes are those of a Llama with 32 layers, 4096 wide, all linear layers adapted. One module of
each shape is aggregated and timed, and the whole model's time is the sum over its 224 modules, as
they are aggregated one after the other. Silos differ in rank. The last line is a JSON object:
`start_mib` is the process's memory before, with its libraries, `peak_mib` its peak over all
strategies, with all silos' factors of one module, and `replies_mib` what all silos' replies of the
whole model are besides, float32, which Flower holds::

    python tests/benchmarks/lora_aggregation.py --silos 100 --ranks 8
    python tests/benchmarks/lora_aggregation.py --silos 100 --ranks 8,16,32,64
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence

import torch

from flower_split.config.model import LoraSettings
from flower_split.lowrank import Factors, pair_up
from flower_split.strategies import (
    FedAvgLoRA,
    FedExLoRA,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    LoraStrategy,
    ModuleRound,
)

LAYERS = 32
SHAPES = {
    "4096x4096": (4096, 4096, 4),
    "4096x11008": (4096, 11008, 2),
    "11008x4096": (11008, 4096, 1),
}
"""Inputs, outputs and modules a layer, by name."""

KINDS: dict[str, Callable[..., LoraStrategy]] = {
    "fedavglora": FedAvgLoRA,
    "fedexlora": FedExLoRA,
    "flora": FLoRA,
    "flexlora": FlexLoRA,
    "hetlora": HetLoRA,
}


def module_round(inputs: int, outputs: int, ranks: Sequence[int], silos: int) -> ModuleRound:
    """One module's round: silos start from one adapter and moved a little, as in training."""
    generator = torch.Generator().manual_seed(0)
    top = max(ranks)
    a = torch.randn(top, inputs, generator=generator) / inputs**0.5
    b = torch.randn(outputs, top, generator=generator) / outputs**0.5
    updates = []
    for silo in range(silos):
        rank = ranks[silo % len(ranks)]
        moved_a = a[:rank] + 0.1 * torch.randn(rank, inputs, generator=generator) / inputs**0.5
        moved_b = b[:, :rank] + torch.randn(outputs, rank, generator=generator) / outputs**0.5
        updates.append(Factors(a=moved_a.double(), b=moved_b.double(), scale=2.0))
    (pair,) = pair_up(["m.lora_A.weight", "m.lora_B.weight"])
    return ModuleRound(
        pair=pair,
        before=Factors(a=a.double(), b=b.double(), scale=2.0),
        folded=None,
        updates=updates,
        weights=[1 / silos] * silos,
        rank=top,
        server_round=1,
    )


def measure(
    silos: int,
    ranks: Sequence[int],
    shapes: dict[str, tuple[int, int, int]] | None = None,
    strategies: Sequence[str] = tuple(KINDS),
) -> dict[str, object]:
    """Seconds by strategy and module shape, of the whole model, and the process's peak memory."""
    seconds: dict[str, dict[str, float]] = {}
    libraries, replies = _peak_mib(), 0.0
    for shape, (inputs, outputs, count) in (shapes or SHAPES).items():
        module = module_round(inputs, outputs, ranks, silos)
        numbers = sum(update.a.numel() + update.b.numel() for update in module.updates)
        replies += 4 * numbers * count * LAYERS / 2**20
        for name in strategies:
            strategy = KINDS[name](lora=LoraSettings(r=max(ranks)))
            if len(set(ranks)) > 1 and not strategy.mixed_ranks:
                continue
            start = time.perf_counter()
            strategy.aggregate_module(module)
            spent = time.perf_counter() - start
            found = seconds.setdefault(name, {"model": 0.0})
            found[shape] = round(spent, 3)
            found["model"] = round(found["model"] + spent * count * LAYERS, 1)
    return {
        "silos": silos,
        "ranks": list(ranks),
        "seconds": seconds,
        "start_mib": libraries,
        "peak_mib": _peak_mib(),
        "replies_mib": round(replies),
    }


def _peak_mib() -> int:
    """MiB that the process has held at most so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silos", type=int, default=100)
    parser.add_argument("--ranks", default="8", help="with commas; silos take them in turn")
    parser.add_argument("--strategies", default=",".join(KINDS))
    given = parser.parse_args()
    ranks = [int(rank) for rank in given.ranks.split(",")]
    print(json.dumps(measure(given.silos, ranks, strategies=given.strategies.split(","))))


if __name__ == "__main__":
    main()
