"""What each codec saves and costs: bytes, share of a step, and the loss where training ends.

For every codec, on all four hops: payload bytes over float32's; the processor time of encoding and
decoding, checksums included, at both ends together, over that of the busier party in a training
step with four microbatches in flight, which is what the step takes when all else overlaps; that
step's time; and the final held-out loss of one silo of the quickstart. The parties are those of
`split_over_unsplit.py`, and the codecs take turns.
"""

import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.parties import Bench, Step, open_bench
from throughput.shapes import shape_of
from throughput.turns import quiet_turns

from flower_split import (
    LocalTransport,
    SplitAdamW,
    TrunkEngine,
    attach_trunk,
    load_client_model,
    load_trunk,
)
from flower_split.adapters import initial_state, load_state, resolve_lora, split_state, wrap
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import CODECS, HOPS
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import layers_path, load_skeleton
from flower_split.training import evaluate, train_round

QUICKSTART = Path(__file__).parents[1] / "quickstart" / "pyproject.toml"
DEPTH = 4
"""Microbatches in flight."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step with every codec, and the payload bytes of each."""

    steps: Mapping[str, Step]
    carried: Mapping[str, int]

    @property
    def others(self) -> float:
        """The greatest share of the cores that others used in a step."""
        return max(step.others for step in self.steps.values())


def take_turn(bench: Bench) -> Turn:
    """Every codec in a session of its own."""
    steps, carried = dict[str, Step](), dict[str, int]()
    for codec in CODECS:
        bench.connect(codec)
        steps[codec] = bench.split(DEPTH)
        carried[codec] = bench.silo.call("wire_bytes")["bytes"]
    return Turn(steps=steps, carried=carried)


def codec_share(step: Step) -> float:
    """Processor time of codecs at both ends over that of the busier party."""
    parties = ("silo", "trunk")
    codecs = sum(step.work[f"{party} {kind}"] for party in parties for kind in ("encode", "decode"))
    return codecs / max(step.work[f"{party} process"] for party in parties)


def final_loss(codec: str, steps: int, settings: dict[str, Any]) -> float:
    """Held-out loss of silo 0 after `steps` steps on its own, with the settings of a run config."""
    hops = {f"wire.{hop}": codec for hop in HOPS}
    config = read_run_config({**settings, **hops, "train.local-steps": steps})
    data = silo_batches(config, NodeConfig(partition_id=0, num_partitions=3))
    name, bottom, top = config.model.name, config.split.bottom_layers, config.split.top_layers
    skeleton = load_skeleton(name)
    plan = resolve_lora(skeleton, config.lora)
    trunk = load_trunk(name, bottom_layers=bottom, top_layers=top)
    start = initial_state(skeleton, config.lora, seed=config.seed)
    client_state, trunk_state = split_state(start, layers_path(skeleton), trunk.cuts)
    client = wrap(load_client_model(name, bottom_layers=bottom, top_layers=top), plan)
    load_state(client, client_state)
    optimizer = OptimizerSettings.of_training(config.train)
    engine = TrunkEngine(
        trunk, plan=plan, initial=trunk_state, wire=config.wire, optimizer=optimizer
    )
    attach_trunk(client, LocalTransport(engine))
    train_round(client, SplitAdamW(client, lr=0.0), data.train(1), config.train)
    return evaluate(client, data.held_out()).loss


def quickstart_settings() -> dict[str, Any]:
    """The run config of the quickstart, flat, as Flower hands it to an app."""
    return flat_settings(QUICKSTART)


def flat_settings(app: Path) -> dict[str, Any]:
    """The run config in an app's `pyproject.toml`, flat."""
    sections = tomllib.loads(app.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= (
            {f"{name}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def measure(*, toy: bool) -> Report:
    """What the module promises."""
    with open_bench(shape_of(toy=toy)) as bench:
        return tabulate(bench, toy=toy)


def tabulate(bench: Bench, *, toy: bool) -> Report:
    """As `measure`, with parties that run already."""
    turns = quiet_turns(lambda: take_turn(bench), 1 if toy else 3, patience=0.0 if toy else 90.0)
    settings = quickstart_settings() | ({"data.max-examples": 4} if toy else {})
    # At toy size two tell that the others would run.
    trained = ("fp32", "int8") if toy else CODECS
    losses = {codec: final_loss(codec, 1 if toy else 50, settings) for codec in trained}
    carried = turns[0].carried
    found = {}
    for codec in CODECS:
        over = [turn.steps[codec].seconds / turn.steps["fp32"].seconds for turn in turns]
        share = statistics.median(codec_share(turn.steps[codec]) for turn in turns)
        found[codec] = {
            "bytes_over_fp32": round(carried[codec] / carried["fp32"], 4),
            "codec_share_of_step": round(share, 4),
            "step_over_fp32": round(statistics.median(over), 3),
        }
        if codec in losses:
            found[codec]["final_loss_over_fp32"] = round(losses[codec] / losses["fp32"], 4)
    return Report(
        ratios={
            "int8_bytes_over_fp32": found["int8"]["bytes_over_fp32"],
            "codec_share_of_step": max(row["codec_share_of_step"] for row in found.values()),
        },
        figures=found,
        tables=[show(found)],
        draw=lambda figure: draw(figure, found),
    )


def show(found: dict[str, dict[str, float]]) -> Table:
    """A row a codec."""
    table = Table("codec", *(name.replace("_", " ") for name in found["fp32"]))
    for codec, figures in found.items():
        table.add_row(codec, *(str(figure) for figure in figures.values()))
    return table


def draw(figure: Figure, found: dict[str, dict[str, float]]) -> None:
    """Bytes and time, a bar a codec."""
    panels = figure.subplots(1, 2)
    titles = {"bytes_over_fp32": "bytes over fp32's", "codec_share_of_step": "share of a step"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        panel.bar(list(found), [figures[name] for figures in found.values()])
        panel.set_title(title)
        panel.grid(axis="y", alpha=0.3)


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Bytes, time and loss of every codec on the wire."""
    publish("wires", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
