"""The server: computes the trunk between two messages, with the engine of flower_split.

A microbatch takes two messages: h2 goes out and g2 comes back; g1 goes out and the next h1 comes
back. Replies are looked for every two milliseconds, where Flower itself would let 100 pass.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from flower_split import TrunkEngine, load_trunk
from flower_split.adapters import split_state
from flower_split.devices import keep_freed_memory
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest
from half_steps.common import LEARNING_RATE, RESULT, adapters

POLL_SECONDS = 0.002
ANSWER_SECONDS = 600.0

app = ServerApp()


class Wire:
    """Messages to the one silo, and what they took.

    Args:
        grid: Flower's.
        node: The silo.
    """

    def __init__(self, grid: Grid, node: int) -> None:
        self._grid = grid
        self._node = node
        self.payload = 0
        """Bytes of tensors, both ways."""
        self.messages = 0
        self.seconds = 0.0
        """From message to reply, without what the silo computed."""

    def ask(self, name: str, number: int, tensor: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """The silo's tensor for the trunk's; an empty one where it has none to give."""
        content = RecordDict({"half": ConfigRecord({"name": name, "microbatch": number})})
        if tensor is not None:
            content["tensor"] = ArrayRecord({"tensor": Array(tensor.numpy())})
            self.payload += tensor.nbytes
        began = time.perf_counter()
        asked = list(
            self._grid.push_messages(
                [Message(content, dst_node_id=self._node, message_type=MessageType.TRAIN)]
            )
        )
        reply = self._reply(asked)
        told = dict(reply.content.config_records["told"])
        self.seconds += time.perf_counter() - began - float(str(told["seconds"]))
        self.messages += 1
        arrived = reply.content.array_records.get("tensor")
        if arrived is None:
            return torch.empty(0), told
        answer = torch.from_numpy(arrived["tensor"].numpy().copy())
        self.payload += answer.nbytes
        return answer, told

    def _reply(self, asked: list[str]) -> Message:
        give_up = time.monotonic() + ANSWER_SECONDS
        while not (found := list(self._grid.pull_messages(asked))):
            if time.monotonic() > give_up:
                raise TimeoutError(f"the silo did not answer within {ANSWER_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        if found[0].has_error():
            raise RuntimeError(f"the silo failed: {found[0].error.reason}")
        return found[0]


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    torch.set_num_threads(int(config["threads"]))
    keep_freed_memory()
    checkpoint = Path(str(config["checkpoint"]))
    plan, initial, layers = adapters(checkpoint)
    trunk = load_trunk(
        str(checkpoint),
        bottom_layers=int(config["bottom-layers"]),
        top_layers=int(config["top-layers"]),
    )
    _, state = split_state(initial, layers, trunk.cuts)
    engine = TrunkEngine(trunk, plan=plan, initial=state)
    session = engine.open(engine.describe(), None).result()
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    wire = Wire(grid, nodes[0])
    steps: list[dict[str, float]] = []
    for step in range(int(config["steps"])):
        wire.payload, wire.messages, wire.seconds = 0, 0, 0.0
        began, losses = time.perf_counter(), []
        hidden, told = wire.ask("h1", 0, None)
        count = int(told["microbatches"])
        for number in range(count):
            place = {"step": step, "microbatch": step * count + number}
            request = ForwardRequest(hidden=hidden, keep_graph=True, dropout=True, **place)
            h2 = session.submit(request).result()
            grad, told = wire.ask("h2", number, h2)
            losses.append(float(told["loss"]))
            g1 = session.submit(BackwardRequest(grad=grad, **place)).result()
            hidden, told = wire.ask("g1", number, g1)
        session.submit(StepRequest(step=step, learning_rate=LEARNING_RATE)).result()
        steps.append(
            {
                "seconds": time.perf_counter() - began,
                "loss": sum(losses) / count,
                "payload_bytes": wire.payload,
                "messages": wire.messages,
                "seconds_of_messages": wire.seconds,
                "silo_peak": int(told["peak"]),
            }
        )
    session.close().result()
    (Path(str(config["output-dir"])) / RESULT).write_text(json.dumps(steps), encoding="utf-8")
