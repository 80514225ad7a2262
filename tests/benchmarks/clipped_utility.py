"""What DP-SGD costs in quality: held-out loss over ε, of one silo on its own.

::

    python tests/benchmarks/clipped_utility.py [--folder outputs/real-model] [--steps 30]
        [--batch 64] [--noise 0 1 2 4] [--rate 0.003] [--clip 1] [--jobs 1] [--set lora.r=1 …]

The quickstart's model and its first silo; with a folder that `make demo-real` has made, the real
model and all of its questions. Examples are clipped to the median of their gradients' norms at the
start, times `--clip`. Beside noise there is a plain run, with batches of the same size; noise of 0
clips alone, and has no guarantee. ε is that of all steps, at δ = 1e-5.
"""

import argparse
import json
import multiprocessing
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "bench-throughput"))

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from wires import flat_settings, quickstart_settings

from flower_split.adapters import initial_state, load_state, resolve_lora, split_state, wrap
from flower_split.apps.folder.overrides import parse_overrides
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import SiloBatches, silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings, SampledGaussians
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk
from flower_split.segments import (
    layers_path,
    load_client_model,
    load_skeleton,
    load_trunk,
    resolve_source,
)
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.training import evaluate, train_round
from flower_split.training.clipped import example_losses

DELTA = 1e-5
NEXT_TO_NONE = 1e-9
REAL = Path(__file__).parents[2] / "examples" / "real_model" / "pyproject.toml"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run."""

    noise: float | None
    """In parts of the norm to which examples are clipped; None for plain steps."""
    loss: float
    """Held-out, in nats, after the last step."""
    epsilon: float | None
    """None where there is no guarantee."""


def settings(folder: Path | None, *, steps: int, batch: int) -> dict[str, Any]:
    """The run config of the quickstart, or of the real model that is in `folder`."""
    flat = quickstart_settings() | {"data.max-examples": 0, "data.eval-fraction": 0.1}
    if folder is not None:
        place = folder.resolve()
        flat = flat_settings(REAL) | {
            "model.name": str(place / "model"),
            "data.path": str(place / "questions.jsonl"),
            "data.partitioner": "none",
            "data.max-examples": 0,
        }
    rows = min(8, batch)
    return flat | {
        "train.local-steps": steps,
        "train.batch-size": rows,
        "train.accumulation": batch // rows,
    }


def silo(config: SplitConfig) -> SiloBatches:
    """The first silo's data, or all of it."""
    if config.data.partitioner == "none":
        return silo_batches(config, NodeConfig())
    return silo_batches(config, NodeConfig(partition_id=0, num_partitions=3))


def median_norm(config: SplitConfig, data: SiloBatches, examples: int = 16) -> float:
    """Of the examples' gradients at the start, each computed alone by the uncut model."""
    skeleton = load_skeleton(config.model.name)
    folder = resolve_source(config.model.name).folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole: nn.Module = wrap(model, resolve_lora(skeleton, config.lora)).eval()
    load_state(whole, initial_state(skeleton, config.lora, seed=config.seed))
    trained = [p for p in whole.parameters() if p.requires_grad]
    norms = list[float]()
    for batch in data.train(1):
        for row in range(len(batch["labels"])):
            alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            labels = alone.pop("labels")
            loss = example_losses(whole(**alone).logits, labels)[0].sum()
            found = torch.autograd.grad(loss, trained)
            norms.append(float(torch.stack([one.norm() for one in found]).norm()))
            if len(norms) == examples:
                return statistics.median(norms)
    return statistics.median(norms)


def held_out_loss(config: SplitConfig, *, trains: bool = True) -> float:
    """After the steps of a round, on a silo of its own, or before them."""
    data, name, cuts = silo(config), config.model.name, config.split
    skeleton = load_skeleton(name)
    plan = resolve_lora(skeleton, config.lora)
    trunk = load_trunk(name, bottom_layers=cuts.bottom_layers, top_layers=cuts.top_layers)
    start = initial_state(skeleton, config.lora, seed=config.seed)
    client_state, trunk_state = split_state(start, layers_path(skeleton), trunk.cuts)
    client = wrap(
        load_client_model(name, bottom_layers=cuts.bottom_layers, top_layers=cuts.top_layers), plan
    )
    load_state(client, client_state)
    engine = TrunkEngine(
        trunk,
        plan=plan,
        initial=trunk_state,
        optimizer=OptimizerSettings.of_training(config.train),
        privacy=PrivacySettings.of_training(config.dp, config.train),
    )
    attach_trunk(client, LocalTransport(engine))
    optimizer, stages = SplitAdamW(client, lr=0.0), SplitStages(client)
    if trains:
        train_round(client, optimizer, data.train(1), config.train, stages=stages, seed=config.seed)
    return evaluate(client, data.held_out(), stages=stages).loss


def lines(
    flat: dict[str, Any], noises: Sequence[float], times: float = 1.0, jobs: int = 1
) -> Iterator[Line]:
    """A line for plain steps, and one for every noise; 0 is clipping alone.

    Args:
        flat: The run config.
        noises: In parts of the norm to which examples are clipped.
        times: The median norm is this norm.
        jobs: Processes in which they are computed.
    """
    plain = read_run_config(flat)
    data = silo(plain)
    clip = times * median_norm(plain, data)
    runs = [flat]
    for noise in noises:
        private = {"dp.noise": noise or NEXT_TO_NONE, "dp.clip": clip, "train.max-grad-norm": 0.0}
        runs.append(flat | private)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        losses = pool.map(loss_of_run, runs) if jobs > 1 else map(loss_of_run, runs)
        yield Line(noise=None, loss=next(losses), epsilon=None)
        expected = plain.train.batch_size * plain.train.accumulation
        for noise, loss in zip(noises, losses, strict=True):
            released = SampledGaussians(
                noise=noise or 1.0, chance=expected / data.num_train, times=plain.train.local_steps
            )
            yield Line(noise=noise, loss=loss, epsilon=released.epsilon(DELTA) if noise else None)


def loss_of_run(flat: dict[str, Any]) -> float:
    """Held-out, after the steps of a run config."""
    return held_out_loss(read_run_config(flat))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every run, and write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--noise", type=float, nargs="*", default=(0.0, 1.0, 2.0, 4.0))
    parser.add_argument("--rate", type=float, help="learning rate, where not the app's")
    parser.add_argument("--clip", type=float, default=1.0, help="times the median norm")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--set", nargs="*", default=(), help="other keys of the run config")
    parser.add_argument("--out", type=Path)
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    flat = settings(asked.folder, steps=asked.steps, batch=asked.batch)
    flat |= {"train.learning-rate": asked.rate} if asked.rate else {}
    flat |= parse_overrides(asked.set)
    found = list[Line]()
    before = held_out_loss(read_run_config(flat), trains=False)
    told = {
        "command": shlex.join(["python", "tests/benchmarks/clipped_utility.py", *given]),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "model": "quickstart" if asked.folder is None else "SmolLM2-135M-Instruct",
        "steps": asked.steps,
        "batch": asked.batch,
        "before": before,
    }
    print(f"held-out loss before: {before:.4f}")
    print("noise    held-out loss   epsilon")
    for line in lines(flat, asked.noise, asked.clip, asked.jobs):
        found.append(line)
        noise = "plain" if line.noise is None else f"{line.noise:g}"
        epsilon = "none" if line.epsilon is None else f"{line.epsilon:.3g}"
        print(f"{noise:7} {line.loss:14.4f}   {epsilon}", flush=True)
        if asked.out is not None:  # a line may take minutes
            content = {**told, "lines": [asdict(one) for one in found]}
            asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
