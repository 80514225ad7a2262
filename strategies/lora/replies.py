"""Replies of silos that train LoRA adapters: how each one is scaled, and whether it counts."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.lowrank import LORA_RECORD, Allowance, Scaling, at_rank
from flower_split.strategies.hosting.adapter_parts import check_range, first_of
from flower_split.strategies.hosting.replies import (
    outvoted,
    own_problem,
    scaling_of_reply,
    weight_of,
)
from flower_split.transport.arrays import read_array, shortened

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SiloReply:
    """A training reply that counts, and how its adapter is scaled."""

    message: Message
    scaling: Scaling
    weight: float
    """Weight of the silo in averages, as it told; weights of a round do not sum to 1."""
    arrays: ArrayRecord

    @property
    def node_id(self) -> int:
        """The node that sent it."""
        return self.message.metadata.src_node_id

    def tensor(self, name: str) -> Tensor:
        """A float64 copy of one tensor."""
        return torch.from_numpy(read_array(name, self.arrays[name])).double()


def admitted(
    messages: Sequence[Message], shapes: Shapes, *, weight_key: str, allowance: Allowance
) -> tuple[list[SiloReply], dict[int, str]]:
    """The replies that count, and for every other node why its reply does not.

    Args:
        messages: Without errors.
        shapes: Name and shape of every tensor that a reply must have, at any rank.
        weight_key: Metric by which replies are weighed.
        allowance: The scaling of a silo that does not tell its own, and the bounds of others.
    """
    counted, refused = dict[int, SiloReply](), dict[int, str]()
    for message in messages:
        node = message.metadata.src_node_id
        problem = own_problem(message.content, weight_key, trained=True)
        if not problem:
            try:
                counted[node] = _read(message, shapes, weight_key, allowance)
            except AdapterError as error:
                problem = str(error)
        if problem:
            refused[node] = problem
    refused |= outvoted({node: reply.message.content for node, reply in counted.items()})
    _log(refused)
    return [reply for node, reply in counted.items() if node not in refused], refused


def fitting(
    counted: Sequence[SiloReply], misfit: Callable[[Collection[Scaling]], str]
) -> tuple[list[SiloReply], dict[int, str]]:
    """The replies of silos that a strategy can aggregate, and why the others do not count.

    Args:
        counted: Replies.
        misfit: `LoraStrategy.misfit`.
    """
    unfit = {reply.node_id: misfit({reply.scaling}) for reply in counted}
    refused = {node: problem for node, problem in unfit.items() if problem}
    _log(refused)
    return [reply for reply in counted if reply.node_id not in refused], refused


def _log(refused: Mapping[int, str]) -> None:
    for node, problem in refused.items():
        logger.warning("node %d does not count: %s", node, problem)


def _read(message: Message, shapes: Shapes, weight_key: str, allowance: Allowance) -> SiloReply:
    content = message.content
    scaling = scaling_of_reply(content, allowance)
    if scaling is None:
        raise AdapterError("the silo does not say of which rank and alpha its adapter is")
    if scaling.r > allowance.largest_r or scaling.alpha > allowance.largest_alpha:
        raise AdapterError(
            f"the silo has {scaling}, and silos of this run may have rank {allowance.largest_r} "
            f"and alpha {allowance.largest_alpha:g} at most: raise lora.max-r, or lower the silo's"
        )
    (arrays,) = content.array_records.values()
    _check(arrays, {name: at_rank(name, shape, scaling.r) for name, shape in shapes.items()})
    weight = weight_of(content, weight_key)
    return SiloReply(message=message, scaling=scaling, weight=weight, arrays=arrays)


def _check(arrays: ArrayRecord, shapes: Shapes) -> None:
    missing, unknown = shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys()
    if missing or unknown:
        raise AdapterError(
            f"the reply has {len(missing)} tensors missing{first_of(missing)} and {len(unknown)} "
            f"unexpected{first_of(unknown)}: train with AdapterExchange, or send exactly the "
            "tensors that were trained"
        )
    for name, shape in shapes.items():
        array = arrays[name]
        if tuple(array.shape) != shape or array.dtype != "float32":
            raise AdapterError(
                f"{name} is {shortened(array.dtype)} of shape {shortened(tuple(array.shape))}, "
                f"expected float32 of shape {shape}: a reply of another rank or alpha must say so "
                f"in its ConfigRecord {LORA_RECORD!r}"
            )
        check_range(name, read_array(name, array))
