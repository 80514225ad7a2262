"""One trunk for many silos: computed together, one at a time, and the uncut model.

Three measurements, because the trunk's share of the work and its machine are not the silos':

- the trunk alone on all cores, whose silos are elsewhere and ask again as soon as they are
  answered: tokens per second and the time to an answer, with requests computed together and one
  at a time; beside it, what one batch gains where the layers have no adapters, which is the bound;
- eight silos and the trunk, a process each, on the same cores as the uncut PEFT model; the trunk
  computes half of the silos together, so that the other half has the other core in the meantime;
- the memory of a trunk that has served 1 and 32 silos.

Microbatches are short, 1 x 64 tokens: that is where computing one at a time wastes most.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from operator import truediv
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.crowd import Crowd, Whole
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.process import cores, set_up
from throughput.shapes import Shape, shape_of
from throughput.trunk_alone import (
    BATCHED,
    SERIAL,
    TrunkAlone,
    frozen_batched_over_serial,
    trunk_memory,
)

from flower_split.server.compute.queue import BatchSettings

COUNTS = (1, 2, 4, 8, 16, 32)
TOGETHER = 8
"""Silos that train beside the trunk."""
WAYS = {"batched": BATCHED, "serial": SERIAL}


def alone(shape: Shape, silos: int, turns: int) -> dict[str, dict[str, float]]:
    """The trunk alone both ways, in turns: tokens per second, and seconds to an answer.

    `over_serial` is the median of the turns' own ratios.
    """
    trunks = {way: TrunkAlone(shape, silos, settings) for way, settings in WAYS.items()}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way, trunk in trunks.items():
            start = time.perf_counter()
            waited = trunk.step()
            if turn > 0:  # the first turn warms up
                rates[way].append(trunk.tokens / (time.perf_counter() - start))
                waits[way] += waited
    for trunk in trunks.values():
        trunk.close()
    return {
        way: {
            "tokens_per_second": statistics.median(rates[way]),
            "over_serial": statistics.median(map(truediv, rates[way], rates["serial"])),
            "answer_seconds_p50": statistics.median(waits[way]),
            "answer_seconds_p95": statistics.quantiles(waits[way], n=20)[-1],
        }
        for way in WAYS
    }


def halves(shape: Shape, silos: int) -> BatchSettings:
    """Batches of half of the silos, so that the others compute at the same time as the trunk."""
    return replace(BATCHED, batch_tokens=shape.rows * shape.tokens * max(2, silos // 2))


def measure(*, toy: bool) -> Report:
    """All three measurements."""
    shape = replace(shape_of(toy=toy), rows=1, tokens=8 if toy else 64, microbatches=4)
    counts, crowd = ((1, 2), 2) if toy else (COUNTS, TOGETHER)
    turns = 1 if toy else 3
    set_up(cores())
    trunk = {count: alone(shape, count, turns) for count in counts}
    bound = frozen_batched_over_serial(shape, crowd, turns)
    whole, keeping, together, serial = [], [], [], []
    batched = halves(shape, crowd)
    if toy:  # its passes are shorter than a busy machine is late
        batched = replace(batched, gather_ms=1000.0)
    ways = {"batched": batched, "serial": SERIAL}
    steps = 1 if toy else 2
    with (
        Crowd(shape, crowd, ways) as silos,
        Whole(shape, keep=False) as uncut,
        Whole(shape, keep=True) as uncut_keeping,
    ):
        silos.train("batched", 1)
        for _ in range(turns):
            whole.append(uncut.train(4 * steps))
            keeping.append(uncut_keeping.train(4 * steps))
            together.append(silos.train("batched", steps))
            serial.append(silos.train("serial", steps))
    few, many = (trunk_memory(shape, count) for count in (counts[0], counts[-1]))
    over = [t["tokens_per_second"] / w for t, w in zip(together, whole, strict=True)]
    figures: dict[str, Any] = {
        "tokens_of_a_microbatch": [shape.rows, shape.tokens],
        "trunk_alone": trunk,
        "batched_over_serial_without_adapters": bound,
        "unsplit_tokens_per_second": whole,
        "unsplit_that_keeps_memory_tokens_per_second": keeping,
        "silos_together": together,
        "silos_together_serial": serial,
        "silos8_over_unsplit_of_every_turn": over,
        "trunk_bytes": {counts[0]: few, counts[-1]: many},
    }
    ratios = {
        "silos8_over_unsplit": round(statistics.median(over), 3),
        "batched_over_serial": round(trunk[crowd]["batched"]["over_serial"], 3),
        "trunk_memory_32_over_1": round(many / few, 3),
    }
    return Report(
        ratios=ratios,
        figures=figures,
        tables=[show(trunk)],
        draw=lambda figure: draw(figure, trunk),
    )


def show(trunk: Mapping[int, Any]) -> Table:
    """A row for every number of silos and way."""
    table = Table("silos", "way", "tokens per second", "answer p50 [ms]", "answer p95 [ms]")
    for count, ways in trunk.items():
        for way, found in ways.items():
            p50, p95 = (1000 * found[f"answer_seconds_{p}"] for p in ("p50", "p95"))
            rate = f"{found['tokens_per_second']:.0f}"
            table.add_row(str(count), way, rate, f"{p50:.0f}", f"{p95:.0f}")
    return table


def draw(figure: Figure, trunk: Mapping[int, Any]) -> None:
    """Tokens per second and waiting over the number of silos."""
    left, right = figure.subplots(1, 2)
    for way in WAYS:
        rates = [ways[way]["tokens_per_second"] for ways in trunk.values()]
        waits = [1000 * ways[way]["answer_seconds_p95"] for ways in trunk.values()]
        left.plot(list(trunk), rates, "o-", label=way)
        right.plot(list(trunk), waits, "o-", label=way)
    left.set_ylabel("tokens per second, the trunk alone")
    right.set_ylabel("milliseconds to an answer, 95th percentile")
    for panel in (left, right):
        panel.set_xlabel("silos")
        panel.set_ylim(bottom=0)
        panel.legend()
        panel.grid(alpha=0.3)


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """One trunk for many silos: computed together, one at a time, and the uncut model."""
    publish("many_silos", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
