"""What each codec saves and costs: bytes, share of a step, and the loss where training ends.

For every codec, on all four hops: payload bytes over float32's; the time of encoding and decoding,
at both ends together, over that of a training step through gRPC on loopback with one microbatch
at a time; and the final held-out loss of one silo of the quickstart over that of a float32 wire.
Codecs take turns, so that a noisy machine slows all of them.
"""

import statistics
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from matplotlib.figure import Figure
from rich.table import Table
from throughput.part import OUTPUTS, Out, Report, Toy, publish
from throughput.shapes import Shape, random_ids, random_model, shape_of
from torch import Tensor

from flower_split import (
    GrpcTransport,
    LocalTransport,
    SplitAdamW,
    TrunkEngine,
    TrunkServer,
    attach_trunk,
    load_client_model,
    load_trunk,
    session_spec,
    split_model,
)
from flower_split.adapters import initial_state, load_state, resolve_lora, split_state, wrap
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.compression import table
from flower_split.compression.codec import Codec
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import CODECS, LoraSettings, WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import layers_path, load_skeleton
from flower_split.training import evaluate, train_round

QUICKSTART = Path(__file__).parents[1] / "quickstart" / "pyproject.toml"
THREADS = 2


class Stopwatch(Codec):
    """A codec that measures itself."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name, self.wire = codec.name, codec.wire  # type: ignore[misc]
        self.seconds = 0.0
        self._lock = threading.Lock()

    def encode(self, tensor: Tensor) -> Tensor:
        with self._measured():
            return self.codec.encode(tensor)

    def decode(self, payload: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._measured():
            return self.codec.decode(payload, shape, dtype)

    def encoded_bytes(self, shape: Sequence[int]) -> int:
        return self.codec.encoded_bytes(shape)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        taken = time.perf_counter() - start
        with self._lock:  # both ends measure, each in a thread of its own
            self.seconds += taken


@contextmanager
def stopwatch(name: str) -> Iterator[Stopwatch]:
    """The codec `name` measures itself, in sessions that begin inside."""
    codec = table.BY_NAME[name]
    table.BY_NAME[name] = watch = Stopwatch(codec)
    try:
        yield watch
    finally:
        table.BY_NAME[name] = codec


def on_all_hops(codec: str) -> WireConfig:
    """A wire with one codec."""
    return WireConfig(h1=codec, h2=codec, g2=codec, g1=codec)


def measure_steps(shape: Shape, turns: int) -> dict[str, dict[str, float]]:
    """By codec: payload bytes of a step, its seconds, and the share of them that codecs took."""
    model = random_model(shape)
    plan = resolve_lora(model, LoraSettings(r=8))
    ids = random_ids(shape)
    client, trunk = split_model(model, shape.bottom, shape.top)
    client = wrap(client, plan)
    client.train()

    def train_step(optimizer: SplitAdamW) -> None:
        for batch in ids:
            client(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, list[tuple[float, float, int]]] = {codec: [] for codec in CODECS}
    with TrunkServer(TrunkEngine(trunk, plan=plan), health=False) as server:
        for _ in range(turns):
            for codec in CODECS:
                spec = session_spec(
                    client, plan=plan, trunk_adapters="federated", wire=on_all_hops(codec)
                )
                with stopwatch(codec) as watch, GrpcTransport(server.address, spec) as transport:
                    attach_trunk(client, transport)
                    optimizer = SplitAdamW(client, lr=1e-4)
                    train_step(optimizer)  # the first one warms up
                    watch.seconds, sent = 0.0, transport.bytes_sent + transport.bytes_received
                    start = time.perf_counter()
                    train_step(optimizer)
                    taken = time.perf_counter() - start
                    carried = transport.bytes_sent + transport.bytes_received - sent
                    found[codec].append((taken, watch.seconds / taken, carried))
    return {
        codec: {
            "seconds": statistics.median(taken for taken, _, _ in steps),
            "share": statistics.median(share for _, share, _ in steps),
            "bytes": steps[0][2],
        }
        for codec, steps in found.items()
    }


def final_loss(codec: str, steps: int, settings: dict[str, Any]) -> float:
    """Held-out loss of silo 0 after `steps` steps on its own, with the settings of a run config."""
    hops = {f"wire.{hop}": codec for hop in ("h1", "h2", "g2", "g1")}
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
    sections = tomllib.loads(QUICKSTART.read_text())["tool"]["flwr"]["app"]["config"]
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
    torch.set_num_threads(THREADS)
    steps = measure_steps(shape_of(toy=toy), turns=1 if toy else 5)
    settings = quickstart_settings() | ({"data.max-examples": 4} if toy else {})
    losses = {codec: final_loss(codec, 1 if toy else 50, settings) for codec in CODECS}
    found = {
        codec: {
            "bytes_over_fp32": round(step["bytes"] / steps["fp32"]["bytes"], 4),
            "codec_share_of_step": round(step["share"], 4),
            "step_over_fp32": round(step["seconds"] / steps["fp32"]["seconds"], 3),
            "final_loss_over_fp32": round(losses[codec] / losses["fp32"], 4),
        }
        for codec, step in steps.items()
    }
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
