"""The silo: every message brings a tensor of the trunk and takes the next one to it.

It keeps the passes that are under way, and its optimizer, in the process from message to message.
A simulation's processes live long enough for that. A deployment starts one for every message, which
computes the bottom's forward pass again; what it learns is lost, and only its time counts.
"""

import time
from functools import cache
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file
from torch import Tensor

from flower_split import load_client_model
from flower_split.adapters import load_state, split_state, wrap
from flower_split.devices import keep_freed_memory
from flower_split.remote.attach import find_slot
from flower_split.reporting.machine import resident_bytes
from flower_split.segments import Halves, Pause
from half_steps.common import LEARNING_RATE, adapters

app = ClientApp()


class Silo:
    """Bottom and top, the texts, and the microbatches under way."""

    def __init__(self, checkpoint: Path, bottom: int, top: int, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.before = resident_bytes()
        plan, initial, layers = adapters(checkpoint)
        model = load_client_model(str(checkpoint), bottom_layers=bottom, top_layers=top)
        wrapped = wrap(model, plan)
        _, _, slot = find_slot(wrapped)
        state, _ = split_state(initial, layers, slot.cuts)
        load_state(wrapped, state)
        wrapped.train()
        self.halves = Halves(wrapped, slot)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
        self.ids = load_file(checkpoint / "ids.safetensors")["ids"]
        self.under_way: dict[int, Pause] = {}

    def start(self, number: int) -> Tensor:
        """h1 of a microbatch."""
        ids = self.ids[number]
        pause = self.under_way[number] = self.halves.first({"input_ids": ids, "labels": ids})
        return pause.hidden.detach()

    def turn(self, number: int, hidden: Tensor) -> tuple[Tensor, float]:
        """g2 for h2, and the loss."""
        leaf = hidden.requires_grad_()
        loss = self.halves.second(self._passage(number), leaf).loss
        (loss / len(self.ids)).backward()
        if leaf.grad is None:
            raise RuntimeError("the loss does not depend on what the trunk computed")
        return leaf.grad, float(loss.detach())

    def finish(self, number: int, grad: Tensor) -> None:
        """The bottom's backward pass for g1, and a step after the last microbatch."""
        torch.autograd.backward(self._passage(number).hidden, grad)
        del self.under_way[number]
        if number == len(self.ids) - 1:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _passage(self, number: int) -> Pause:
        if number not in self.under_way:
            self.start(number)
        return self.under_way[number]


@cache
def silo(checkpoint: str, bottom: int, top: int, threads: int) -> Silo:
    return Silo(Path(checkpoint), bottom, top, threads)


@app.train()
def half_step(message: Message, context: Context) -> Message:
    config = context.run_config
    mine = silo(
        str(config["checkpoint"]),
        int(config["bottom-layers"]),
        int(config["top-layers"]),
        int(config["threads"]),
    )
    began = time.perf_counter()
    said = message.content.config_records["half"]
    number, loss = int(said["microbatch"]), 0.0
    arrived = message.content.array_records.get("tensor")
    tensor = None if arrived is None else torch.from_numpy(arrived["tensor"].numpy().copy())
    answer: Tensor | None = None
    if said["name"] == "h2" and tensor is not None:
        answer, loss = mine.turn(number, tensor)
    else:
        if tensor is not None:
            mine.finish(number, tensor)
            number += 1
        if number < len(mine.ids):
            answer = mine.start(number)
    told = ConfigRecord(
        {
            "loss": loss,
            "microbatches": len(mine.ids),
            "peak": resident_bytes(peak=True) - mine.before,
            "seconds": time.perf_counter() - began,
        }
    )
    content = RecordDict({"told": told})
    if answer is not None:
        content["tensor"] = ArrayRecord({"tensor": Array(answer.numpy())})
    return Message(content, reply_to=message)
