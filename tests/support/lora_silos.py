"""Toy silos of LoRA strategies: each sends factors of its own rank, drawn at random."""

from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid

from flower_split.lowrank import (
    CONTROL,
    LORA_RECORD,
    Factors,
    Instructions,
    Scaling,
    combined,
    fit_part,
    part_of,
    scaling_fields,
    split_folded,
)
from flower_split.strategies.lora.replies import at_rank

MODULES = {"base_model.model.layers.0.q": (7, 5), "base_model.model.layers.1.up": (4, 9)}
"""Inputs and outputs of the toy modules."""


def toy_names(module, kind="lora_"):
    tail = "" if "embedding" in kind else ".weight"
    return f"{module}.{kind}A{tail}", f"{module}.{kind}B{tail}"


def toy_adapter(rank, *, seed=0, zero_b=False, modules=MODULES, kind="lora_"):
    """The tensors of an adapter for `modules`, float32."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (inputs, outputs) in modules.items():
        a, b = toy_names(module, kind)
        state[a] = torch.randn(rank, inputs, generator=generator)
        state[b] = torch.randn(outputs, rank, generator=generator) * (not zero_b)
    return state


@dataclass(frozen=True, kw_only=True)
class Silo:
    """One toy silo."""

    r: int = 4
    alpha: float = 8.0
    rslora: bool = False
    examples: int = 1
    silent: bool = field(default=False)
    """Whether it does not say how its adapter is scaled."""

    @property
    def scaling(self):
        return Scaling(r=self.r, alpha=self.alpha, rslora=self.rslora)


class Federation:
    """Runs a strategy over toy silos, and keeps what they were sent and what they had.

    Args:
        silos: One a node.
        tamper: Called with partition and reply content; may change it.
    """

    def __init__(self, silos, *, tamper=None, kind="lora_"):
        self.silos = silos
        self.received = []
        self.had = {}
        self.kind = kind
        app = ClientApp()

        @app.train()
        def train(message, context):
            partition = context.node_config["partition-id"]
            silo = silos[partition]
            number = message.content["config"]["server-round"]
            instructions = Instructions.from_fields(dict(message.content["config"].items()))
            arrays = message.content["arrays"].to_torch_state_dict()
            self.received.append((number, partition, arrays, instructions))
            trained, _ = split_folded({n: t for n, t in arrays.items() if CONTROL not in n})
            drawn = toy_adapter(silo.r, seed=100 * number + partition, kind=kind)
            own = {
                name: drawn[name]
                if part_of(name) in instructions.trains
                else fit_part(part_of(name), trained[name], drawn[name])
                * (instructions.scale / silo.scaling.factor) ** (part_of(name) == "B")
                for name in drawn
                if name in trained or name in instructions.personal
            }
            assert all(at_rank(n, t.shape, silo.r) == tuple(t.shape) for n, t in own.items())
            self.had[number, partition] = own
            sent = {
                name: tensor
                for name, tensor in own.items()
                if part_of(name) in instructions.trains and name not in instructions.personal
            }
            if instructions.controlled:
                sent |= {CONTROL + name: torch.zeros_like(t) for name, t in sent.items()}
            content = RecordDict(
                {
                    "arrays": ArrayRecord(sent),
                    "metrics": MetricRecord({"num-examples": silo.examples, "train-loss": 1.0}),
                }
            )
            if not silo.silent:
                content[LORA_RECORD] = ConfigRecord(scaling_fields(silo.scaling))
            if tamper is not None:
                tamper(partition, content)
            return Message(content, reply_to=message)

        self.grid = InProcessGrid(app, len(silos))

    def run(self, strategy, initial, rounds=1):
        """The global adapter after `rounds`, as float64 tensors."""
        arrays = strategy.start(self.grid, ArrayRecord(initial), num_rounds=rounds).arrays
        return {name: t.double() for name, t in arrays.to_torch_state_dict().items()}

    def own(self, number):
        """What every silo had after a round, by partition."""
        return [self.had[number, partition] for partition in range(len(self.silos))]

    def weights(self):
        total = sum(silo.examples for silo in self.silos)
        return [silo.examples / total for silo in self.silos]

    def average_update(self, number, module):
        """Σ w_i s_i B_i A_i of what the silos had after a round, dense float64."""
        a, b = toy_names(module, self.kind)
        return sum(
            w * s.scaling.factor * self.had[number, i][b].double() @ self.had[number, i][a].double()
            for i, (w, s) in enumerate(zip(self.weights(), self.silos, strict=True))
        )

    @staticmethod
    def node(partition):
        return FIRST_NODE + partition


def whole_update(state, module, scale, kind="lora_"):
    """The module's whole update in a global adapter, dense."""
    a, b = toy_names(module, kind)
    whole = combined(state, scale)
    return Factors(a=whole[a], b=whole[b]).product()
