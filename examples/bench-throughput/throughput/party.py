"""A party: a process of the benchmark that does as its standard input says, line by line.

A line is a JSON object, `{"call": METHOD, …}`; the answer is one too. Roles: `trunk` serves, `silo`
trains against it, `whole` trains the uncut model. Started by `parties.Party`.
"""

import json
import logging
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from flower_split import (
    GrpcTransport,
    SplitAdamW,
    TrunkEngine,
    TrunkServer,
    attach_trunk,
    load_client_model,
    load_trunk,
    session_spec,
)
from flower_split.adapters import (
    AdapterPlan,
    initial_state,
    load_state,
    resolve_lora,
    split_state,
    wrap,
)
from flower_split.config.sections import LoraSettings, TrainConfig, WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote.attach import find_slot
from flower_split.reporting.machine import resident_bytes
from flower_split.segments import Cuts, layers_path, load_skeleton
from flower_split.training import Batch, Stages, StepReport, train_round
from throughput.clock import Clock
from throughput.probes import ProbedStages, probe_trunk, probe_wire
from throughput.process import set_up
from throughput.shapes import Shape, random_ids

LORA = LoraSettings(r=8)


class Role:
    """What every party can be asked.

    Args:
        checkpoint: Folder of the uncut model.
        shape: Its shape and the work's.
        threads: Of torch.
        keep: Keep freed memory, as the ready-made apps do.
    """

    def __init__(self, checkpoint: str, shape: Shape, threads: int, keep: bool) -> None:
        set_up(threads, keep=keep)
        self.shape = shape
        self.clock = Clock()
        self._before = resident_bytes()
        skeleton = load_skeleton(checkpoint)
        self.plan: AdapterPlan = resolve_lora(skeleton, LORA)
        self.initial = initial_state(skeleton, LORA, seed=0)
        self.layers = layers_path(skeleton)
        self._used = time.process_time()

    def adapter_bytes(self) -> dict[str, int]:
        """Of the whole adapter, and of the silo's part of it, as Flower carries them."""
        cuts = Cuts(
            num_layers=self.shape.layers,
            bottom_layers=self.shape.bottom,
            top_layers=self.shape.top,
        )
        client, _ = split_state(self.initial, self.layers, cuts)
        sizes = {"whole": self.initial, "silo": client}
        return {name: sum(t.nbytes for t in state.values()) for name, state in sizes.items()}

    def read(self) -> dict[str, Any]:
        """Times by kind of work, and the process's processor time, since the last call."""
        used, self._used = self._used, time.process_time()
        return {"times": self.clock.lap(), "processor": self._used - used}

    def memory(self) -> dict[str, int]:
        """Peak of the resident set above what it was after the imports, in bytes."""
        return {"peak": resident_bytes(peak=True) - self._before}

    def close(self) -> None:
        """End whatever runs."""


class TrunkRole(Role):
    """Serves the trunk on loopback."""

    def __init__(self, checkpoint: str, shape: Shape, threads: int, keep: bool) -> None:
        super().__init__(checkpoint, shape, threads, keep)
        trunk = load_trunk(checkpoint, bottom_layers=shape.bottom, top_layers=shape.top)
        probe_wire(self.clock)
        probe_trunk(self.clock)
        _, initial = split_state(self.initial, self.layers, trunk.cuts)
        engine = TrunkEngine(trunk, plan=self.plan, initial=initial)
        self._server = TrunkServer(engine, health=False).start()

    def address(self) -> dict[str, str]:
        """Where silos connect to."""
        return {"address": self._server.address}

    def close(self) -> None:
        """Stop serving."""
        self._server.stop(0.0)


class ChosenDepth(logging.Handler):
    """Listens for the depth that is found by measurement; 0 until then."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.depth = 0
        log = logging.getLogger("flower_split.training.depth")
        log.setLevel(logging.INFO)
        log.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and isinstance(record.args[0], int):
            self.depth = record.args[0]


class Trainer(Role):
    """Trains some model, with the loop of `SplitSession.train()`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    stages: Stages | None = None

    def batches(self) -> list[Batch]:
        """The microbatches of a step."""
        return [{"input_ids": ids, "labels": ids} for ids in random_ids(self.shape)]

    def train(self, depth: int, steps: int) -> dict[str, Any]:
        """Optimizer steps: seconds and loss of each, seconds waited, and the depth at last."""
        config = TrainConfig(
            batch_size=self.shape.rows,
            accumulation=self.shape.microbatches,
            in_flight=depth,
            local_steps=steps,
        )
        ends, losses = [time.perf_counter()], []

        def note(report: StepReport) -> None:
            ends.append(time.perf_counter())
            losses.append(report.loss)

        chosen = ChosenDepth()
        metrics = train_round(
            self.model,
            self.optimizer,
            self.batches(),
            config,
            stages=self.stages,
            progress=note,
        )
        seconds = [end - start for start, end in pairwise(ends)]
        return {
            "seconds": seconds,
            "losses": losses,
            "waited": metrics.waited,
            "depth": depth or chosen.depth,
        }


class SiloRole(Trainer):
    """Trains the client model against a trunk."""

    def __init__(self, checkpoint: str, shape: Shape, threads: int, keep: bool) -> None:
        super().__init__(checkpoint, shape, threads, keep)
        cuts = {"bottom_layers": shape.bottom, "top_layers": shape.top}
        self.model = wrap(load_client_model(checkpoint, **cuts), self.plan)
        probe_wire(self.clock)
        self._transport: GrpcTransport | None = None

    def connect(self, address: str, codec: str = "fp32") -> dict[str, Any]:
        """Open a session, and start again from the initial adapter."""
        self.close()
        spec = session_spec(
            self.model,
            plan=self.plan,
            trunk_adapters="federated",
            wire=WireConfig.uniform(codec),
            optimizer=OptimizerSettings.of_training(TrainConfig()),
        )
        self._transport = GrpcTransport(address, spec)
        *_, slot = find_slot(self.model)
        client, _ = split_state(self.initial, self.layers, slot.cuts)
        load_state(self.model, client)
        attach_trunk(self.model, self._transport)
        self.optimizer = SplitAdamW(self.model, lr=0.0)
        self.optimizer.step = self.clock.timed("step", self.optimizer.step)  # type: ignore[method-assign]
        self.stages = ProbedStages(self.model, self.clock)
        return {}

    def wire_bytes(self) -> dict[str, int]:
        """Payload of the session so far, both ways."""
        carried = self._transport
        return {"bytes": 0 if carried is None else carried.bytes_sent + carried.bytes_received}

    def close(self) -> None:
        """Leave the trunk."""
        if self._transport is not None:
            self._transport.close()


class WholeRole(Trainer):
    """Trains the uncut PEFT model."""

    def __init__(self, checkpoint: str, shape: Shape, threads: int, keep: bool) -> None:
        super().__init__(checkpoint, shape, threads, keep)
        self.model = wrap(AutoModelForCausalLM.from_pretrained(checkpoint), self.plan)
        load_state(self.model, self.initial)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)


ROLES: dict[str, type[Role]] = {"trunk": TrunkRole, "silo": SiloRole, "whole": WholeRole}


def main() -> None:
    # Whatever a library prints must not get in between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    role = ROLES[settings.pop("role")](shape=Shape(**settings.pop("shape")), **settings)
    answers.write("{}\n")
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(getattr(role, call.pop("call"))(**call)) + "\n")
    role.close()


if __name__ == "__main__":
    main()
