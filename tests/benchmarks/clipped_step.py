"""What DP-SGD costs: a step with examples clipped over the cut, over a plain one.

::

    python tests/benchmarks/clipped_step.py [--steps 8] [--rows 2] [--tokens 128] [--microbatches 4]

GPT-2 small's shape with random weights, LoRA of rank 8 on its attention, cuts 2/2, both sides in
one process: so that the sum of both parties' work is compared, and nothing of it is hidden behind
the other's. Plain steps and private ones of the same examples take turns, and the CPU seconds of
those that follow one another are compared: another process on the machine counts little. Memory is
what both sides hold of one example until it is weighed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from flower_split.adapters import adapter_parameters, resolve_lora, wrap
from flower_split.config.sections import LoraSettings
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk, session_spec
from flower_split.segments import split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.training import Accumulator

LORA = LoraSettings(r=8, alpha=16.0, target_modules=("c_attn",))
CUTS = (2, 2)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a step of DP-SGD, beside a plain one."""

    plain: float
    """CPU seconds, the median."""
    private: float
    """The same of DP-SGD, noise and sum included."""
    ratio: float
    """Median of the ratios of steps that followed one another."""
    least: float
    """The least of these ratios."""
    bytes_an_example: int
    """That both sides hold of one example until it is weighed: 4 for each trained number."""


class Run:
    """A client model and its trunk, which take steps.

    Args:
        model: Uncut.
        privacy: Of DP-SGD; None for plain steps.
    """

    def __init__(self, model: GPT2LMHeadModel, privacy: PrivacySettings | None) -> None:
        plan = resolve_lora(model, LORA)
        self.private = privacy is not None
        client, trunk = split_model(model, *CUTS)
        optimizer = OptimizerSettings()
        engine = TrunkEngine(trunk, plan=plan, optimizer=optimizer, privacy=privacy)
        self.client: nn.Module = wrap(client, plan).eval()
        spec = session_spec(
            self.client,
            plan=plan,
            trunk_adapters="federated",
            optimizer=optimizer,
            privacy=privacy,
        )
        attach_trunk(self.client, LocalTransport(engine, spec))
        self.optimizer = SplitAdamW(self.client, lr=1e-4)
        self.gradients = Accumulator(
            self.client, stages=SplitStages(self.client), in_flight=1, clipped=self.private
        )

    def step(self, batches: Sequence[dict[str, Tensor]]) -> float:
        """CPU seconds of a step."""
        began = time.process_time()
        self.gradients.add(batches)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began


def measure(config: GPT2Config, *, steps: int, rows: int, tokens: int, microbatches: int) -> Cost:
    """The cost at a model's shape.

    Args:
        config: Of the model.
        steps: Of each kind, after two to warm up.
        rows: Examples of a microbatch.
        tokens: Of an example.
        microbatches: Of a step.
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    privacy = PrivacySettings(noise=1.0, clip=0.1, expected_batch=rows * microbatches)
    plain, private = Run(model, None), Run(model, privacy)
    ids = torch.randint(config.vocab_size, (microbatches, rows, tokens))
    batches = [{"input_ids": one, "labels": one} for one in ids]
    seconds = list[tuple[float, float]]()
    for number in range(steps + 2):
        pair = plain.step(batches), private.step(batches)
        if number >= 2:
            seconds.append(pair)
    whole = GPT2LMHeadModel(config)
    trained = dict(adapter_parameters(wrap(whole, resolve_lora(whole, LORA))))
    return Cost(
        plain=statistics.median(one for one, _ in seconds),
        private=statistics.median(other for _, other in seconds),
        ratio=statistics.median(other / one for one, other in seconds),
        least=min(other / one for one, other in seconds),
        bytes_an_example=4 * sum(p.numel() for p in trained.values()),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the cost, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    shape = {name: getattr(asked, name) for name in ("steps", "rows", "tokens", "microbatches")}
    cost = measure(GPT2Config(), **shape)
    print(
        f"plain {cost.plain:.2f} s, private {cost.private:.2f} s: {cost.ratio:.2f} times "
        f"(least {cost.least:.2f}); {cost.bytes_an_example / 1e6:.2f} MB an example"
    )
    if asked.out is not None:
        content = {**shape, "threads": torch.get_num_threads(), **asdict(cost)}
        asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
