"""flower_split against what people do today: a Flower message a half-step, and no split at all.

Three ways to fine-tune the same model on one silo's tokens, on the same two cores:

- **flower_split**: the trunk stream, four microbatches in flight, one thread a party.
- **a message a half-step**: split fine-tuning as it was done on Flower so far. The same segments
  and the same trunk engine, but every tensor is a Flower message or its reply. What can be in its
  favour is: both parties have two threads, as they never work at once; a message's reply brings the
  next half-step's tensor, so a microbatch takes two messages and not four; replies are looked for
  every 2 ms; and it runs in Flower's simulation, behind a real SuperLink, where the silo's process
  lives on. In a deployment Flower starts a process for every message: that is measured too, with
  one microbatch, and a whole step is put together from it.
- **the whole model**: plain federated LoRA, two threads, nothing to send during a step.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from safetensors.torch import save_file
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.parties import Bench, open_bench
from throughput.shapes import Shape, random_ids, shape_of

from flower_split.apps.simulate import simulate

FOLDER = Path(__file__).parent
APP = FOLDER / "half_steps"
RESULT = "half_steps.json"
DEPTH = 4
MIB = 1 << 20
SPLIT, MESSAGES, WHOLE = "flower_split", "a message a half-step", "the whole model"
DEPLOYED = "a message a half-step, deployed"


@dataclass(frozen=True, kw_only=True)
class HalfSteps:
    """What optimizer steps with a message a half-step took, the first one left out if there are
    more."""

    seconds: float
    payload_bytes: int
    """Of a step's tensors."""
    messages: int
    """Of a step."""
    seconds_of_messages: float
    """Of a step: from message to reply, without what the silo computed."""
    silo_peak: int
    loss: float
    """Of the first step."""

    @classmethod
    def read(cls, path: Path) -> "HalfSteps":
        """What the ServerApp left."""
        steps = json.loads(path.read_text(encoding="utf-8"))
        counted = steps[1:] or steps
        return cls(
            **{
                name: statistics.median(step[name] for step in counted)
                for name in ("seconds", "payload_bytes", "messages", "seconds_of_messages")
            },
            silo_peak=max(step["silo_peak"] for step in steps),
            loss=steps[0]["loss"],
        )


def run_config(shape: Shape, checkpoint: Path, steps: int) -> dict[str, Any]:
    """Settings of the app, but for its output folder."""
    return {
        "checkpoint": str(checkpoint),
        "bottom-layers": shape.bottom,
        "top-layers": shape.top,
        "steps": steps,
    }


def in_simulation(shape: Shape, checkpoint: Path, steps: int) -> HalfSteps:
    """Behind a SuperLink of its own, which simulates the silo."""
    settings = run_config(shape, checkpoint, steps)
    given = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    with tempfile.TemporaryDirectory() as folder:
        simulate(APP, silos=1, output_dir=Path(folder), run_config=[given])
        return HalfSteps.read(Path(folder, RESULT))


def in_deployment(shape: Shape, checkpoint: Path) -> HalfSteps:
    """One microbatch, with a SuperLink and a SuperNode in processes of their own."""
    sys.path.insert(0, str(FOLDER.parents[1] / "tests" / "support"))
    from federation import COMPLETED, Federation, Node  # the one that the tests run

    settings = run_config(shape, checkpoint, steps=1)
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as folder:
        with Federation(Path(folder, "federation"), [Node()]) as federation:
            ended = federation.run(APP, **given, output_dir=folder)
            if ended.status != COMPLETED:
                raise RuntimeError(f"the run ended as {ended}:\n{federation.logs()}")
        return HalfSteps.read(Path(folder, RESULT))


def measure(*, toy: bool, deployment: bool) -> Report:
    """A row for every way."""
    with open_bench(shape_of(toy=toy)) as bench:
        return compare(bench, toy=toy, deployment=deployment)


def compare(bench: Bench, *, toy: bool, deployment: bool) -> Report:
    """As `measure`, with parties that run already."""
    shape, checkpoint = bench.shape, bench.checkpoint
    turns, steps = (1, 1) if toy else (2, 2)
    save_file({"ids": random_ids(shape)}, checkpoint / "ids.safetensors")
    bench.unsplit()
    bench.split(DEPTH)
    carried = -bench.silo.call("wire_bytes")["bytes"]
    whole, split, messages = [], [], []
    for _ in range(turns):
        whole.append(bench.unsplit(steps).seconds)
        split.append(bench.split(DEPTH, steps).seconds)
        messages.append(in_simulation(shape, checkpoint, steps + 1))
    carried += bench.silo.call("wire_bytes")["bytes"]
    rows = {
        SPLIT: row(bench, "silo", statistics.median(split), carried // (turns * steps)),
        MESSAGES: {
            **row(bench, "silo", statistics.median(one.seconds for one in messages), 0),
            "silo_peak_bytes": max(one.silo_peak for one in messages),
            "step_bytes": messages[0].payload_bytes,
        },
        WHOLE: row(bench, "whole", statistics.median(whole), 0),
    }
    of_messages = statistics.median(one.seconds_of_messages for one in messages)
    computing = rows[MESSAGES]["seconds"] - of_messages
    figures: dict[str, Any] = {
        "ways": rows,
        "messages_in_a_step": messages[0].messages,
        "seconds_a_message": of_messages / messages[0].messages,
        "loss_of_the_first_step": messages[0].loss,
    }
    if deployment:
        save_file({"ids": random_ids(shape)[:1].contiguous()}, checkpoint / "ids.safetensors")
        one = in_deployment(shape, checkpoint)
        a_message = one.seconds_of_messages / one.messages
        figures["seconds_a_message_deployed"] = a_message
        rows[DEPLOYED] = {
            **rows[MESSAGES],
            "seconds": computing + a_message * messages[0].messages,
            "silo_peak_bytes": one.silo_peak,
        }
    for way in rows.values():
        way["seconds_over_flower_split"] = way["seconds"] / rows[SPLIT]["seconds"]
    return Report(
        ratios={},
        figures=figures,
        tables=[show(rows)],
        draw=lambda figure: draw(figure, rows),
    )


def row(bench: Bench, party: str, seconds: float, step_bytes: int) -> dict[str, float]:
    """One way's figures, for the silo's process in it."""
    silo = bench.silo if party == "silo" else bench.whole
    return {
        "seconds": seconds,
        "silo_peak_bytes": silo.call("memory")["peak"],
        "step_bytes": step_bytes,
        "round_bytes": 2 * silo.call("adapter_bytes")[party],
    }


def show(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A row a way."""
    table = Table("", "s a step", "over flower_split", "silo peak MiB", "MB a step", "MB a round")
    for way, found in rows.items():
        table.add_row(
            way,
            f"{found['seconds']:.2f}",
            f"{found['seconds_over_flower_split']:.2f}",
            f"{found['silo_peak_bytes'] / MIB:.0f}",
            f"{found['step_bytes'] / 1e6:.1f}",
            f"{found['round_bytes'] / 1e6:.2f}",
        )
    return table


def draw(figure: Figure, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Time, memory and bytes, a bar a way."""
    titles = {
        "seconds": ("seconds of a step", 1.0),
        "silo_peak_bytes": ("MiB at the silo, at most", MIB),
        "step_bytes": ("MB a step", 1e6),
    }
    panels = figure.subplots(1, len(titles), sharey=True)
    for panel, (name, (title, unit)) in zip(panels, titles.items(), strict=True):
        bars = panel.barh(list(rows), [found[name] / unit for found in rows.values()])
        panel.bar_label(bars, fmt="%.1f", padding=2)
        panel.margins(x=0.25)
        panel.set_title(title)
        panel.invert_yaxis()


def main(
    toy: Toy = False,
    out: Out = OUTPUTS,
    deployment: Annotated[bool, typer.Option(help="Measure a deployment's messages too.")] = True,
) -> None:
    """flower_split, a Flower message a half-step, and the whole model at the silo."""
    publish("against_today", measure(toy=toy, deployment=deployment), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
