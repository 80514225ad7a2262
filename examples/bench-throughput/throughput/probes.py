"""Probes: where the clock looks into a split run, at the silo and at the trunk.

The library has no hooks for a stopwatch; the probes stand in for the few functions through which
all of the work passes, in a process that only measures.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import flower_split.transport.grpc.replies
import flower_split.transport.grpc.requests
from flower_split.remote import SplitStages
from flower_split.serialization.tensors import TensorAssembler
from flower_split.server.compute.batch import TrunkComputer
from flower_split.server.stepping import AdapterSlot
from flower_split.training import Passage
from throughput.clock import Clock


def probe_wire(clock: Clock) -> None:
    """From now on measure `encode` (with the checksum) and `decode` of all tensors."""
    requests: Any = flower_split.transport.grpc.requests
    replies: Any = flower_split.transport.grpc.replies
    for module in (requests, replies):
        module.encode_tensor = clock.timed("encode", module.encode_tensor)
    assembler: Any = TensorAssembler
    assembler.tensors = clock.timed("decode", TensorAssembler.tensors)


def probe_trunk(clock: Clock) -> None:
    """From now on measure `forward`, `backward` and `step` of all trunks."""
    computer: Any = TrunkComputer
    computer.forward = clock.timed("forward", TrunkComputer.forward)
    computer.backward = clock.timed("backward", TrunkComputer.backward)
    slot: Any = AdapterSlot
    slot.step = clock.timed("step", AdapterSlot.step)


class ProbedStages(SplitStages):
    """Measures `forward` and `backward` of bottom and top, without the waiting between them."""

    def __init__(self, client_model: nn.Module, clock: Clock) -> None:
        super().__init__(client_model)
        self._clock = clock

    def start(self, inputs: Mapping[str, Tensor], seed: int | None = None) -> Any:
        with self._clock.measured("forward"):
            passage: Any = super().start(inputs, seed)
        return _probed(passage, self._clock)


def _probed(passage: Any, clock: Clock) -> Passage:
    passage.output = clock.timed("forward", passage.output)
    passage.backward = clock.timed("backward", passage.backward)
    passage.finish = clock.timed("backward", passage.finish)
    probed: Passage = passage
    return probed
