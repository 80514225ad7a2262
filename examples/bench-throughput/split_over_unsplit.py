"""Tokens per second of a split model over those of the uncut one, on the same two cores.

The uncut PEFT model computes with two threads; the split one with one thread at the silo and one
at the trunk, in two processes that talk gRPC over loopback. Both train the same random model with
LoRA on the same microbatches, with the loop of `SplitSession.train()`, and take turns. The split
model's processes keep freed memory as those of the ready-made apps do. The uncut model is as PEFT
and torch come; that it can keep freed memory too is measured as well, and told beside.

Beside the ratio stands the pipeline's bound: the uncut model's time over the slower party's own
work, measured with one microbatch in flight, so while the other core rests; as if all else cost
nothing. What a step of the deepest pipeline takes beyond that work is told by its cause.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.parties import Bench, Step, open_bench
from throughput.shapes import shape_of
from throughput.turns import quiet_turns

DEPTHS = (1, 2, 4)
"""Microbatches in flight."""
OWN = ("forward", "backward", "step")
MEASURED_STEPS = 9
"""Enough for `train.in-flight` 0 to choose among 2, 4 and 8."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An optimizer step of the uncut model both ways, and one at every depth."""

    unsplit: Step
    keeping: Step
    """Of the uncut model where it keeps freed memory."""
    split: Mapping[int, Step]

    @property
    def others(self) -> float:
        """The greatest share of the cores that others used in a step."""
        steps = (self.unsplit, self.keeping, *self.split.values())
        return max(step.others for step in steps)


def own_work(step: Step, party: str) -> float:
    """Processor seconds of a party's own computing in a step."""
    return sum(step.work[f"{party} {kind}"] for kind in OWN)


def slower_work(turn: Turn) -> float:
    """Of the slower party, with one microbatch in flight."""
    return max(own_work(turn.split[1], party) for party in ("silo", "trunk"))


def take_turn(bench: Bench) -> Turn:
    """The uncut model, then every depth."""
    return Turn(
        unsplit=bench.unsplit(),
        keeping=bench.unsplit(keep=True),
        split={depth: bench.split(depth) for depth in DEPTHS},
    )


def measure(*, toy: bool) -> Report:
    """The ratio at every depth, its bound, and what is between them."""
    with open_bench(shape_of(toy=toy)) as bench:
        return compare(bench, toy=toy)


def compare(bench: Bench, *, toy: bool) -> Report:
    """As `measure`, with parties that run already."""
    shape = bench.shape
    turns = quiet_turns(lambda: take_turn(bench), 1 if toy else 4, patience=0.0 if toy else 240.0)
    chosen = bench.split(0, steps=2 if toy else MEASURED_STEPS)
    beside = bench.unsplit()

    def median(value: Callable[[Turn], float]) -> float:
        return statistics.median(value(turn) for turn in turns)

    def over(uncut: Callable[[Turn], Step]) -> dict[int, float]:
        return {
            depth: statistics.median(uncut(t).seconds / t.split[depth].seconds for t in turns)
            for depth in DEPTHS
        }

    deepest = DEPTHS[-1]
    ratios, keeping = over(lambda t: t.unsplit), over(lambda t: t.keeping)
    silo = median(lambda t: own_work(t.split[1], "silo"))
    trunk = median(lambda t: own_work(t.split[1], "trunk"))
    silo_beside = median(lambda t: own_work(t.split[deepest], "silo"))
    seconds, waited = (
        median(lambda t: t.split[deepest].seconds),
        median(lambda t: t.split[deepest].waited),
    )
    figures: dict[str, Any] = {
        "tokens_in_a_step": shape.step_tokens,
        "unsplit_tokens_per_second": {
            "as it comes": shape.step_tokens / median(lambda t: t.unsplit.seconds),
            "freed memory kept": shape.step_tokens / median(lambda t: t.keeping.seconds),
        },
        "split_over_unsplit_by_depth": ratios,
        "over_unsplit_that_keeps_memory_by_depth": keeping,
        "split_over_unsplit_of_every_turn": [
            turn.unsplit.seconds / turn.split[deepest].seconds for turn in turns
        ],
        "by_measurement": {
            "depth": chosen.depth,
            "split_over_unsplit": beside.seconds / chosen.last,
        },
        "bound": median(lambda t: t.unsplit.seconds / slower_work(t)),
        "bound_over_unsplit_that_keeps_memory": median(
            lambda t: t.keeping.seconds / slower_work(t)
        ),
        "work_seconds": {"silo": silo, "trunk": trunk},
        "deepest_step_seconds": {
            "the silo's own work, the other core at rest": silo,
            "more of it, because both cores work": silo_beside - silo,
            "waiting for the trunk": waited,
            "codecs, gRPC, Python": seconds - silo_beside - waited,
        },
        "used_by_others": max(turn.others for turn in turns),
    }
    return Report(
        ratios={"split_over_unsplit": round(ratios[deepest], 3)},
        figures=figures,
        tables=show(figures),
        draw=lambda figure: draw(figure, figures),
    )


def show(figures: Mapping[str, Any]) -> list[Table]:
    """The ratios, and a step of the deepest pipeline by cause."""
    table = Table("microbatches in flight", "split over unsplit", "that keeps freed memory too")
    keeping = figures["over_unsplit_that_keeps_memory_by_depth"]
    for depth, ratio in figures["split_over_unsplit_by_depth"].items():
        table.add_row(str(depth), f"{ratio:.3f}", f"{keeping[depth]:.3f}")
    chosen = figures["by_measurement"]
    table.add_row(
        f"by measurement: {chosen['depth'] or 'not settled'}",
        f"{chosen['split_over_unsplit']:.3f}",
    )
    bounds = (figures[name] for name in ("bound", "bound_over_unsplit_that_keeps_memory"))
    table.add_row("bound", *(f"{bound:.3f}" for bound in bounds))
    for way, rate in figures["unsplit_tokens_per_second"].items():
        table.add_row(f"unsplit, {way}", f"{rate:.0f} tokens/s")
    causes = Table(f"a step with {DEPTHS[-1]} in flight", "seconds", "share")
    parts = figures["deepest_step_seconds"]
    for cause, seconds in parts.items():
        causes.add_row(cause, f"{seconds:.3f}", f"{seconds / sum(parts.values()):.1%}")
    return [table, causes]


def draw(figure: Figure, figures: Mapping[str, Any]) -> None:
    """A bar a depth, with the uncut model and the bound as lines."""
    panel = figure.subplots()
    ratios = figures["split_over_unsplit_by_depth"]
    panel.bar([f"{depth} in flight" for depth in ratios], list(ratios.values()))
    panel.axhline(1.0, color="black", label="unsplit, two threads")
    panel.axhline(figures["bound"], color="C1", linestyle="--", label="the pipeline's bound")
    panel.set_ylabel("tokens per second over the unsplit model's")
    panel.legend(loc="lower right")
    panel.grid(axis="y", alpha=0.3)


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Tokens per second of a split model over those of the uncut one, on the same two cores."""
    publish("split_over_unsplit", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
