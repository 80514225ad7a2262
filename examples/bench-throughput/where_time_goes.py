"""Where the time of a split training step goes, with one microbatch in flight and with four.

The parties are those of `split_over_unsplit.py`. Work is the processor time of the thread that did
it, so that other processes of the machine are not counted; waiting is what is left of the step.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.parties import Bench, Step, open_bench
from throughput.shapes import shape_of
from throughput.turns import quiet_turns

DEPTHS = (1, 4)
WORK = ("forward", "backward", "step", "encode", "decode")
Parts = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step at every depth."""

    steps: Mapping[int, Step]

    @property
    def others(self) -> float:
        """The greatest share of the cores that others used in a step."""
        return max(step.others for step in self.steps.values())


def parts_of(step: Step) -> dict[str, dict[str, float]]:
    """By party: seconds by kind of work; the rest of its processor time; and its waiting."""
    found = {}
    for party in ("silo", "trunk"):
        parts = {kind: step.work[f"{party} {kind}"] for kind in WORK}
        used = step.work[f"{party} process"]
        parts["gRPC, Python"] = max(0.0, used - sum(parts.values()))
        parts["wait"] = step.waited if party == "silo" else max(0.0, step.seconds - used)
        found[party] = parts
    return found


def measure(*, toy: bool) -> Report:
    """Medians of every part of a step."""
    with open_bench(shape_of(toy=toy)) as bench:
        return account(bench, toy=toy)


def account(bench: Bench, *, toy: bool) -> Report:
    """As `measure`, with parties that run already."""
    turns = quiet_turns(
        lambda: Turn(steps={depth: bench.split(depth) for depth in DEPTHS}),
        1 if toy else 3,
        patience=0.0 if toy else 90.0,
    )
    found: dict[str, Any] = {}
    for depth in DEPTHS:
        steps = [turn.steps[depth] for turn in turns]
        parts = [parts_of(step) for step in steps]
        found[f"{depth} in flight"] = {
            "whole step": statistics.median(step.seconds for step in steps),
            **{
                party: {
                    kind: statistics.median(one[party][kind] for one in parts) for kind in kinds
                }
                for party, kinds in parts[0].items()
            },
        }
    figures = {"seconds": found, "used_by_others": max(turn.others for turn in turns)}
    return Report(
        ratios={},
        figures=figures,
        tables=[show(found)],
        draw=lambda figure: draw(figure, found),
    )


def show(found: Mapping[str, Any]) -> Table:
    """A column a depth."""
    table = Table("milliseconds of a step", *found)
    table.add_row("whole step", *(f"{1000 * parts['whole step']:.1f}" for parts in found.values()))
    first = next(iter(found.values()))
    for party in ("silo", "trunk"):
        table.add_section()
        for kind in first[party]:
            values = (f"{1000 * parts[party][kind]:.1f}" for parts in found.values())
            table.add_row(f"{party}: {kind}", *values)
    return table


def draw(figure: Figure, found: Mapping[str, Any]) -> None:
    """A stacked bar for either party at every depth."""
    panel = figure.subplots()
    bars = [(party, depth) for depth in found for party in ("silo", "trunk")]
    labels = [f"{party}, {depth}" for party, depth in bars]
    below = [0.0] * len(bars)
    for index, kind in enumerate(found[bars[0][1]]["silo"]):
        heights = [found[depth][party][kind] for party, depth in bars]
        color = "lightgrey" if kind == "wait" else f"C{index}"
        panel.bar(labels, heights, bottom=below, label=kind, color=color)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    panel.set_ylabel("seconds of an optimizer step")
    panel.legend()
    panel.grid(axis="y", alpha=0.3)


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Where the time of a split training step goes."""
    publish("where_time_goes", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
