"""Training over slow networks, against what the link and the computation allow.

Silo and trunk are on two ends of an emulated link (`throughput/slow_link.py`). The bound of a step
is the longest of what can overlap: its computation, which is the same pipeline's step on loopback,
and its bytes in either direction over the bandwidth. What the bound leaves out is a step's end:
nothing can be sent from the last g2 on until its g1 and then the trunk's part of the gradient's
norm have come back, because the next microbatch passes a bottom that is stepped by then: two round
trips and a message. That pause is in the measured time, and is told beside it.

The model is tiny, so that the computation takes less time than the wire. Where the target is bound
by computation all the same, others use the machine, and its figure says nothing about the network.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.party import ChosenDepth
from throughput.process import set_up
from throughput.shapes import Shape, random_ids, random_model
from throughput.slow_link import Line, slow_link

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
from flower_split.config.sections import LoraSettings, TrainConfig, WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitStages
from flower_split.server.grpc.service import ServiceLimits
from flower_split.training import StepReport, train_round
from flower_split.transport.messages import SessionLimits

SHAPE = Shape(
    layers=3,
    bottom=1,
    top=1,
    hidden=64,
    heads=2,
    vocabulary=64,
    rows=64,
    tokens=32,
    microbatches=32,
)
TOY = Shape(
    layers=3, bottom=1, top=1, hidden=16, heads=2, vocabulary=31, rows=2, tokens=8, microbatches=4
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symmetrical link; infinitely fast where nothing is said."""

    round_trip_ms: float = 0.0
    mbit: float = math.inf

    @property
    def line(self) -> Line:
        """One direction."""
        return Line.of(round_trip_ms=self.round_trip_ms, mbit=self.mbit)


TARGET = Link(round_trip_ms=50, mbit=100)
"""The link of `wan_over_bound`."""
TARGET_DEPTH = 16
"""Enough for it: a microbatch is on its way for about four times as long as it takes to send."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The last of some optimizer steps."""

    seconds: float
    upward: float
    """Payload from silo to trunk, in bytes."""
    downward: float


class Silo:
    """Silo and trunk of one tiny model, in this process, one thread each."""

    def __init__(self, shape: Shape) -> None:
        set_up(threads=1)
        model = random_model(shape)
        self._plan = resolve_lora(model, LoraSettings(r=8))
        client, trunk = split_model(model, shape.bottom, shape.top)
        self._client = wrap(client, self._plan)
        self._batches = [{"input_ids": ids, "labels": ids} for ids in random_ids(shape)]
        limits = SessionLimits(max_in_flight=shape.microbatches)
        engine = TrunkEngine(trunk, plan=self._plan, limits=limits)
        self._server = TrunkServer(engine, limits=ServiceLimits(session=limits), health=False)

    def __enter__(self) -> "Silo":
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(0.0)

    def step(self, link: Link, codec: str, depth: int, steps: int = 2) -> Step:
        """The last of `steps` steps over `link`; the others let its windows grow."""
        config = TrainConfig(
            accumulation=len(self._batches), in_flight=depth, local_steps=steps, learning_rate=1e-4
        )
        spec = session_spec(
            self._client,
            plan=self._plan,
            trunk_adapters="federated",
            wire=WireConfig.uniform(codec),
            optimizer=OptimizerSettings.of_training(config),
        )
        ends = [time.perf_counter()]

        def note(report: StepReport) -> None:
            ends.append(time.perf_counter())

        with (
            slow_link(self._server.port, link.line) as proxy,
            GrpcTransport(proxy.address, spec) as transport,
        ):
            attach_trunk(self._client, transport)
            optimizer = SplitAdamW(self._client, lr=0.0)
            stages = SplitStages(self._client)
            train_round(
                self._client, optimizer, self._batches, config, stages=stages, progress=note
            )
            carried = transport.wire_bytes
        return Step(
            seconds=ends[-1] - ends[-2],
            upward=carried.upward / steps,
            downward=carried.downward / steps,
        )


def bound(compute: Step, link: Link) -> float:
    """Seconds below which no step can be, its end apart, where `compute` is one on loopback."""
    rate = link.mbit * 1e6 / 8
    return max(compute.seconds, compute.upward / rate, compute.downward / rate)


def pause(compute: Step, link: Link, microbatches: int) -> float:
    """Seconds of a step's end, in which the silo has nothing to send."""
    rate = link.mbit * 1e6 / 8
    return 2 * link.round_trip_ms / 1000 + compute.downward / (2 * microbatches) / rate


def measure(*, toy: bool) -> Report:
    """Bound over measured step: at the target link, and over delay, bandwidth, codec and depth."""
    shape = TOY if toy else SHAPE
    links = [
        Link(round_trip_ms=delay, mbit=mbit)
        for delay, mbit in product((5,) if toy else (10, 50, 150), (100,) if toy else (100, 1000))
    ]
    codecs = ("fp32",) if toy else ("fp32", "int8")
    depths = (1, 4) if toy else (1, 4, TARGET_DEPTH)
    turns = 1 if toy else 3
    cells = list[dict[str, Any]]()
    with Silo(shape) as silo:
        silo.step(Link(), codecs[0], depths[-1])  # the first session warms up
        compute = {
            codec: min((silo.step(Link(), codec, depths[-1]) for _ in range(turns)), key=_seconds)
            for codec in codecs
        }
        for codec, link, depth in product(codecs, links, depths):
            step = silo.step(link, codec, depth)
            cells.append(cell_of(step, compute[codec], link, codec, depth, shape))
        # In turns, and the fastest of each: others on the machine only slow one down.
        aimed = []
        for _ in range(turns):
            aimed.append(silo.step(TARGET, "fp32", depths[-1]))
            again = silo.step(Link(), "fp32", depths[-1])
            compute["fp32"] = min(compute["fp32"], again, key=_seconds)
        best = cell_of(min(aimed, key=_seconds), compute["fp32"], TARGET, "fp32", depths[-1], shape)
        chosen = ChosenDepth()
        found = silo.step(TARGET, "fp32", 0, steps=2 if toy else 12)
        measured = cell_of(found, compute["fp32"], TARGET, "fp32", chosen.depth, shape)
    figures = {
        "compute_seconds": {codec: round(step.seconds, 3) for codec, step in compute.items()},
        "target": best,
        "depth_by_measurement": measured,
        "cells": cells,
    }
    return Report(
        ratios={"wan_over_bound": best["bound_over_step"]},
        figures=figures,
        tables=_show(cells, depths, {"target": best, "by measurement": measured}),
        draw=lambda figure: _draw(figure, cells),
    )


def _seconds(step: Step) -> float:
    return step.seconds


def cell_of(
    step: Step, compute: Step, link: Link, codec: str, depth: int, shape: Shape
) -> dict[str, Any]:
    least = bound(compute, link)
    ending = pause(compute, link, shape.microbatches)
    return {
        "round_trip_ms": link.round_trip_ms,
        "mbit": link.mbit,
        "codec": codec,
        "depth": depth,
        "step_seconds": round(step.seconds, 3),
        "bound_seconds": round(least, 3),
        "bound_by": "computation" if least == compute.seconds else "wire",
        "bound_over_step": round(least / step.seconds, 3),
        "bound_and_pause_over_step": round((least + ending) / step.seconds, 3),
    }


def _show(
    cells: Sequence[Mapping[str, Any]],
    depths: Sequence[int],
    target: Mapping[str, Mapping[str, Any]],
) -> list[Table]:
    """Throughput over the bound's: a row a link and codec, a column a depth; and the target."""
    table = Table("codec", "Mbit/s", "round trip", "bound", *(f"{n} in flight" for n in depths))
    for start in range(0, len(cells), len(depths)):
        row = cells[start : start + len(depths)]
        first = row[0]
        table.add_row(
            str(first["codec"]),
            f"{first['mbit']:g}",
            f"{first['round_trip_ms']:g} ms",
            f"{first['bound_seconds']:.2f} s",
            *(f"{cell['bound_over_step']:.2f}" for cell in row),
        )
    aimed = Table(
        "50 ms, 100 Mbit/s, fp32", "in flight", "bound by", "over bound", "over bound and pause"
    )
    for name, cell in target.items():
        aimed.add_row(
            name,
            str(cell["depth"] or "not settled"),
            str(cell["bound_by"]),
            str(cell["bound_over_step"]),
            str(cell["bound_and_pause_over_step"]),
        )
    return [table, aimed]


def _draw(figure: Figure, cells: Sequence[Mapping[str, Any]]) -> None:
    """A line a link and codec, over the depth."""
    panel = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        name = f"{cell['codec']}, {cell['mbit']:g} Mbit/s, {cell['round_trip_ms']:g} ms"
        lines.setdefault(name, []).append((cell["depth"], cell["bound_over_step"]))
    for name, points in lines.items():
        panel.plot(*zip(*points, strict=True), marker="o", label=name)
    panel.axhline(0.9, color="black", linestyle="--")
    panel.set_xscale("log", base=2)
    panel.set_xlabel("microbatches in flight")
    panel.set_ylabel("throughput over the bound's")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Throughput over slow networks, over what link and computation allow."""
    publish("slow_networks", measure(toy=toy), out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
