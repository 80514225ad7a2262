"""What each codec does to the gradient of a real model: one step's, against the exact one.

::

    python examples/real_model/prepare.py outputs/real-model
    python tests/benchmarks/codec_gradients.py --out tests/benchmarks/results/codec_gradients.json

The model and the settings are those of `examples/real_model`, the rows those of its first silo. An
uncut PEFT model takes a few steps first, as LoRA's first factors have no gradient before. Then the
same batches go through the split model with one codec on all four hops after the other, and its
whole gradient, the trunk's part included, is compared with the uncut model's. Means over batches:

- bytes: payload of the four hops over float32's;
- cosine, relative error: of the gradient, |g - g'| / |g|;
- loss: of the batches with rounded activations, over the exact one;
- progress: how much one step of AdamW along the gradient lowers the exact loss of its batch, over
  how much the exact gradient does.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "bench-throughput"))

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from wires import flat_settings

from flower_split import LocalTransport, TrunkEngine, attach_trunk, load_client_model, load_trunk
from flower_split.adapters import (
    AdapterPlan,
    adapter_parameters,
    initial_state,
    load_state,
    read_state,
    resolve_lora,
    split_state,
    wrap,
)
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import CODECS, HOPS, SplitConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import layers_path, load_skeleton, resolve_source

ROOT = Path(__file__).parents[2]
Batch = Mapping[str, Tensor]
Gradient = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a codec does to one batch, or on average."""

    bytes: float
    cosine: float
    relative_error: float
    loss: float
    progress: float


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One forward and backward pass."""

    loss: float
    gradient: Gradient
    bytes: int = 0


def settings_of(model: str, data: str) -> dict[str, Any]:
    """The run config of the example, with its model and data where they are."""
    flat = flat_settings(ROOT / "examples" / "real_model" / "pyproject.toml")
    return {**flat, "model.name": model, "data.path": data}


def measure(settings: dict[str, Any], *, warm: int, batches: int) -> dict[str, Effect]:
    """The effect of every codec.

    Args:
        settings: A run config, flat.
        warm: Steps of the uncut model before.
        batches: Batches that are compared.
    """
    config = read_run_config(settings)
    rows = iter(silo_batches(config, NodeConfig(partition_id=0, num_partitions=3)).train(1))
    whole, plan = uncut(config)
    step(whole, [dict(next(rows)) for _ in range(warm)], config)
    state = {name: tensor.detach().clone() for name, tensor in read_state(whole).items()}
    compared = [dict(next(rows)) for _ in range(batches)]
    found: dict[str, list[Effect]] = {codec: [] for codec in CODECS}
    for batch in compared:
        exact = passed(whole, batch)
        best = lowered(whole, state, batch, exact, config)
        reference = 0
        for codec in CODECS:
            one = through_the_wire(config, plan, state, batch, codec)
            reference = reference or one.bytes
            rounded = replace(exact, gradient=one.gradient)
            found[codec].append(
                Effect(
                    bytes=one.bytes / reference,
                    loss=one.loss / exact.loss,
                    progress=lowered(whole, state, batch, rounded, config) / best,
                    **compare(one.gradient, exact.gradient),
                )
            )
    return {codec: mean(effects) for codec, effects in found.items()}


def uncut(config: SplitConfig) -> tuple[nn.Module, AdapterPlan]:
    """The stock model with a fresh adapter, and the adapter's plan."""
    skeleton = load_skeleton(config.model.name)
    plan = resolve_lora(skeleton, config.lora)
    folder = resolve_source(config.model.name).folder
    model = wrap(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), plan)
    load_state(model, initial_state(skeleton, config.lora, seed=config.seed))
    return model.train(), plan


def step(model: nn.Module, batches: Sequence[Batch], config: SplitConfig) -> None:
    """A step of AdamW on each batch."""
    optimizer = torch.optim.AdamW(
        [tensor for _, tensor in adapter_parameters(model)], lr=config.train.learning_rate
    )
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def passed(model: nn.Module, batch: Batch) -> Passed:
    """The uncut model's loss and gradient."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradient = {name: tensor.grad.clone() for name, tensor in adapter_parameters(model)}
    return Passed(loss=float(loss.detach()), gradient=gradient)


def through_the_wire(
    config: SplitConfig, plan: AdapterPlan, state: Gradient, batch: Batch, codec: str
) -> Passed:
    """The split model's, with `codec` on all hops."""
    wire = replace(config.wire, **dict.fromkeys(HOPS, codec))
    name, split = config.model.name, config.split
    cut = {"bottom_layers": split.bottom_layers, "top_layers": split.top_layers}
    trunk = load_trunk(name, **cut)
    held, trunks = split_state(dict(state), layers_path(load_skeleton(name)), trunk.cuts)
    client = wrap(load_client_model(name, **cut), plan)
    load_state(client, held)
    engine = TrunkEngine(
        trunk,
        plan=plan,
        initial=trunks,
        wire=wire,
        optimizer=OptimizerSettings.of_training(config.train),
        shares_adapter=True,
    )
    transport = LocalTransport(engine)
    attach_trunk(client, transport, trunk_parameters=True)
    loss = client.train()(**batch).loss
    loss.backward()
    parameters = dict(client.named_parameters())
    gradient = {name: tensor.grad for name, tensor in adapter_parameters(client)}
    for name in trunks:
        (mirrored,) = (n for n in parameters if n.endswith(name.replace(".", "_")))
        gradient[name] = parameters[mirrored].grad
    carried = transport.wire_bytes
    return Passed(
        loss=float(loss.detach()), gradient=gradient, bytes=sum(carried[hop] for hop in HOPS)
    )


def compare(ours: Gradient, exact: Gradient) -> dict[str, float]:
    """Cosine and relative error of the whole gradient."""
    assert ours.keys() == exact.keys()
    flat = [torch.cat([one[name].flatten() for name in exact]).double() for one in (ours, exact)]
    return {
        "cosine": float(nn.functional.cosine_similarity(*flat, dim=0)),
        "relative_error": float((flat[0] - flat[1]).norm() / flat[1].norm()),
    }


def lowered(
    model: nn.Module, state: Gradient, batch: Batch, one: Passed, config: SplitConfig
) -> float:
    """By how much a step along a gradient lowers the batch's loss; the model is as before."""
    named = dict(adapter_parameters(model))
    for name, tensor in named.items():
        tensor.grad = one.gradient[name].clone()
    torch.optim.AdamW(list(named.values()), lr=config.train.learning_rate).step()
    with torch.no_grad():
        after = float(model(**batch).loss)
    load_state(model, dict(state))
    return one.loss - after


def mean(effects: Sequence[Effect]) -> Effect:
    """The mean of every figure."""
    rows = [asdict(one) for one in effects]
    return Effect(**{key: statistics.mean(row[key] for row in rows) for key in rows[0]})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every codec, and write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/real-model"))
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    folder = asked.folder.resolve()
    settings = settings_of(str(folder / "model"), str(folder / "questions.jsonl"))
    settings |= {"train.batch-size": asked.rows}
    found = measure(settings, warm=asked.warm, batches=asked.batches)
    print("codec    bytes   cosine   relative error   loss     progress")
    for codec, one in found.items():
        print(
            f"{codec:5} {one.bytes:8.3f} {one.cosine:8.4f} {one.relative_error:16.4f} "
            f"{one.loss:8.4f} {one.progress:8.3f}"
        )
    if asked.out is not None:
        content = {
            "warm": asked.warm,
            "batches": asked.batches,
            "rows": asked.rows,
            "codecs": {codec: asdict(one) for codec, one in found.items()},
        }
        asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
