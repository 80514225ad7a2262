"""A trunk on a GPU for one and for many silos, against the unsplit LoRA step on the same GPU.

Random bfloat16 weights in the shape of a real model, autocast to bfloat16, float32 adapters. First
the unsplit PEFT model trains; then it is freed, and a trunk of the same shape serves 1, 4 and 16
silos, each a thread that sends random activations and gradients from the host through the `bf16`
codec and steps its own adapter. What the silos would compute is not computed.

Tokens per second count every position that passed; memory is torch's own peak on CUDA, and is not
known elsewhere. A number of silos for which the device has not memory enough is given as null.
"""

import gc
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from peft import get_peft_model
from rich.table import Table
from throughput.llama_shapes import NARROW, SHAPES, TrunkShape, random_llama
from throughput.part import OUTPUTS, Out, Report, Toy, publish

from flower_split import LocalTransport, split_model
from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings, WireConfig
from flower_split.devices import autocasting, resolve_device
from flower_split.errors import TrunkBusyError
from flower_split.server.engine import TrunkEngine
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest

LORA = LoraSettings(r=16, alpha=32.0)
WIRE = WireConfig.uniform("bf16")
RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run of optimizer steps came to."""

    tokens_per_second: float
    peak_bytes: int | None
    """Peak of the device's memory, weights included; None where torch does not count it."""


def measure_unsplit(shape: TrunkShape, device: torch.device) -> Measured:
    """The unsplit model's LoRA step."""
    model = random_llama(shape, device)
    whole = get_peft_model(model, resolve_lora(model, LORA).peft_config())
    whole.train()
    adapters = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=RATE)
    size = (shape.rows, shape.tokens)
    ids = torch.randint(shape.vocabulary, size, device=device)

    def step() -> None:
        for _ in range(shape.microbatches):
            with autocasting(device, NARROW):
                loss = whole(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _measure(step, shape.steps, shape.step_tokens, device)


def open_trunk(shape: TrunkShape, device: torch.device) -> TrunkEngine:
    """An engine whose trunk alone is left of the model."""
    model = random_llama(shape, device)
    plan = resolve_lora(model, LORA)
    _, trunk = split_model(model, shape.bottom, shape.top)
    trunk.autocast = NARROW
    return TrunkEngine(trunk, plan=plan, wire=WIRE)


def measure_trunk(engine: TrunkEngine, shape: TrunkShape, silos: int) -> Measured | None:
    """The trunk's steps for so many silos at once; None where its device has not memory enough."""
    device = engine.trunk.device
    sessions = [Silo(engine, shape) for _ in range(silos)]
    try:
        with ThreadPoolExecutor(silos) as threads:

            def step() -> None:
                for done in [threads.submit(session.step) for session in sessions]:
                    done.result()

            return _measure(step, shape.steps, silos * shape.step_tokens, device)
    except (torch.OutOfMemoryError, TrunkBusyError):
        return None
    finally:
        for session in sessions:
            session.transport.close()


class Silo:
    """Sends an optimizer step's tensors to the trunk, one microbatch after the other.

    Args:
        engine: The trunk.
        shape: Of the tensors.
    """

    def __init__(self, engine: TrunkEngine, shape: TrunkShape) -> None:
        self.transport = LocalTransport(engine)
        self._hidden = torch.randn(shape.rows, shape.tokens, shape.hidden, dtype=NARROW)
        self._mask = torch.ones(shape.rows, shape.tokens, dtype=torch.bool)
        self._microbatches = shape.microbatches
        self._sent = self._steps = 0

    def step(self) -> None:
        """Every microbatch forward and back, then the optimizer's step."""
        for _ in range(self._microbatches):
            request = ForwardRequest(
                step=self._steps,
                microbatch=self._sent,
                hidden=self._hidden,
                attention_mask=self._mask,
                keep_graph=True,
                dropout=True,
            )
            self.transport.forward(request).result()
            self.transport.backward(
                BackwardRequest(step=self._steps, microbatch=self._sent, grad=self._hidden)
            ).result()
            self._sent += 1
        self.transport.step(StepRequest(step=self._steps, learning_rate=RATE)).result()
        self._steps += 1


def _measure(step: Any, steps: int, tokens: int, device: torch.device) -> Measured:
    """Time of `steps` calls of `step` after a first one, `tokens` each."""
    step()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if on_cuda:
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    seconds = time.perf_counter() - began
    return Measured(
        tokens_per_second=steps * tokens / seconds,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_cuda else None,
    )


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(*, toy: bool, device: str = "auto", model_shape: str = "llama-3-8b") -> Report:
    """Tokens per second and memory, unsplit and for every number of silos."""
    shape, place = SHAPES["toy" if toy else model_shape], resolve_device(device)
    unsplit = measure_unsplit(shape, place)
    _free(place)
    engine = open_trunk(shape, place)
    trunk: dict[int, Measured | None] = {}
    for silos in shape.silos:
        _free(place)
        trunk[silos] = measure_trunk(engine, shape, silos)
    figures: dict[str, Any] = {
        "device": str(place),
        "model_shape": "toy" if toy else model_shape,
        "cuts": [shape.bottom, shape.top],
        "microbatch": [shape.rows, shape.tokens],
        "unsplit": vars(unsplit),
        "trunk": {
            str(silos): None if found is None else vars(found) for silos, found in trunk.items()
        },
    }
    ratios = {
        f"trunk_{silos}_over_unsplit": round(found.tokens_per_second / unsplit.tokens_per_second, 3)
        for silos, found in trunk.items()
        if found is not None
    }
    return Report(
        ratios=ratios,
        figures=figures,
        tables=[show(figures)],
        draw=lambda figure: draw(figure, figures),
    )


def show(figures: Mapping[str, Any]) -> Table:
    """A row for the unsplit model and for every number of silos."""
    table = Table(f"{figures['model_shape']} on {figures['device']}", "tokens per second", "memory")
    for name, found in _rows(figures).items():
        if found is None:
            table.add_row(name, "out of memory", "")
            continue
        peak = found["peak_bytes"]
        memory = "unknown" if peak is None else f"{peak / 2**30:.1f} GiB"
        table.add_row(name, f"{found['tokens_per_second']:,.0f}", memory)
    return table


def draw(figure: Figure, figures: Mapping[str, Any]) -> None:
    """Bars of tokens per second."""
    rows = {name: found for name, found in _rows(figures).items() if found is not None}
    panel = figure.subplots()
    panel.bar(list(rows), [found["tokens_per_second"] for found in rows.values()])
    panel.set_ylabel("tokens per second")
    panel.grid(axis="y", alpha=0.3)


def _rows(figures: Mapping[str, Any]) -> dict[str, Any]:
    trunk = {f"trunk, {silos} silos": found for silos, found in figures["trunk"].items()}
    return {"unsplit": figures["unsplit"], **trunk}


Device = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
ModelShape = Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")]


def main(
    toy: Toy = False,
    out: Out = OUTPUTS,
    device: Device = "auto",
    model_shape: ModelShape = "llama-3-8b",
) -> None:
    """A trunk on a GPU for one and for many silos, against the unsplit LoRA step there."""
    if model_shape not in SHAPES:
        raise typer.BadParameter(f"--model-shape must be one of {', '.join(SHAPES)}")
    report = measure(toy=toy, device=device, model_shape=model_shape)
    publish("gpu_trunk", report, out, toy=toy)


if __name__ == "__main__":
    typer.run(main)
