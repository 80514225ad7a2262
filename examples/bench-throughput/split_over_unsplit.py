"""Tokens per second of a split model over those of the uncut one, in one run on one machine.

Both train the same randomly initialised model with LoRA on the same batches, taking turns, so that
a noisy machine slows both. The split one sends every microbatch through gRPC on loopback, one at a
time.
"""

import statistics
import time
from collections.abc import Callable

import torch
import typer
from matplotlib.figure import Figure
from peft import get_peft_model
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.shapes import Shape, random_ids, random_model, shape_of
from torch import Tensor

from flower_split import (
    GrpcTransport,
    SplitAdamW,
    TrunkEngine,
    TrunkServer,
    attach_trunk,
    session_spec,
    split_model,
)
from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings

Step = Callable[[], None]


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One optimizer step over all microbatches, ids: (microbatches, rows, tokens)."""
    for batch in ids:
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def seconds(step: Step) -> float:
    """Wall-clock time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure_rates(shape: Shape, turns: int) -> dict[str, float]:
    """Median tokens per second of both, and their ratio."""
    torch.set_num_threads(2)
    model = random_model(shape)
    plan = resolve_lora(model, LoraSettings(r=8))
    ids = random_ids(shape)
    client, trunk = split_model(model, shape.bottom, shape.top)
    client = wrap(client, plan)
    with TrunkServer(TrunkEngine(trunk, plan=plan), health=False) as server:
        spec = session_spec(client, plan=plan, trunk_adapters="federated")
        with GrpcTransport(server.address, spec) as transport:
            attach_trunk(client, transport)
            split_optimizer = SplitAdamW(client, lr=1e-4)
            whole = get_peft_model(model, plan.peft_config())
            trainable = [p for p in whole.parameters() if p.requires_grad]
            whole_optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
            client.train()
            whole.train()
            times: dict[str, list[float]] = {"unsplit": [], "split": []}
            for turn in range(turns + 1):
                unsplit = seconds(lambda: train_step(whole, whole_optimizer, ids))
                split = seconds(lambda: train_step(client, split_optimizer, ids))
                if turn > 0:  # the first turn warms up
                    times["unsplit"].append(unsplit)
                    times["split"].append(split)
    rate = {name: ids.numel() / statistics.median(taken) for name, taken in times.items()}
    return {
        "unsplit_tokens_per_second": round(rate["unsplit"], 1),
        "split_tokens_per_second": round(rate["split"], 1),
        "split_over_unsplit": round(rate["split"] / rate["unsplit"], 3),
    }


def measure(*, toy: bool) -> Report:
    """The ratio, and what it is of."""
    found = measure_rates(shape_of(toy=toy), turns=2 if toy else 5)
    table = Table("", "tokens per second")
    for name in ("unsplit", "split"):
        table.add_row(name, str(found[f"{name}_tokens_per_second"]))

    def draw(figure: Figure) -> None:
        panel = figure.subplots()
        panel.bar(
            ["unsplit", "split"], [found[f"{n}_tokens_per_second"] for n in ("unsplit", "split")]
        )
        panel.set_ylabel("tokens per second")

    ratios = {"split_over_unsplit": found["split_over_unsplit"]}
    return Report(ratios=ratios, figures=found, tables=[table], draw=draw)


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Tokens per second of a split model over those of the uncut one."""
    publish("split_over_unsplit", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
