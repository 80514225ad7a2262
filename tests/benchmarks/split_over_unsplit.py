"""Tokens per second of a split model over those of the uncut one, in one run on one machine.

Both train the same randomly initialised model with LoRA on the same batches, taking turns, so that
a noisy machine slows both. The split one sends every microbatch through gRPC on loopback, one at a
time. The last line of the output is a JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

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


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the model and of the work; the defaults are GPT-2 small."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    vocabulary: int = 50257
    rows: int = 2
    tokens: int = 128
    microbatches: int = 8
    turns: int = 5
    threads: int = 2


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


def measure(shape: Shape) -> dict[str, float]:
    """Median tokens per second of both, and their ratio."""
    torch.manual_seed(0)
    torch.set_num_threads(shape.threads)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=shape.layers,
            n_embd=shape.hidden,
            n_head=shape.heads,
            vocab_size=shape.vocabulary,
            n_positions=max(shape.tokens, 64),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    plan = resolve_lora(model, LoraSettings(r=8))
    ids = torch.randint(shape.vocabulary, (shape.microbatches, shape.rows, shape.tokens))
    client, trunk = split_model(model, 2, 2)
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
            for turn in range(shape.turns + 1):
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


def main() -> None:
    """Measure with the shape of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    print(json.dumps(measure(Shape(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
