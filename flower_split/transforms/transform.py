"""Transform: the interface of everything that changes or observes tensors at a cut."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flower_split.config.wire import HOPS
from flower_split.transport.messages import SessionSpec

End = Literal["silo", "trunk"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformContext:
    """The microbatch of a tensor, and how its end of the session computes.

    Axes: B rows, T new tokens a row, S tokens a row with the cached ones (S >= T).
    """

    step: int
    """Optimizer steps that the session has made before."""
    microbatch: int
    """Its number within the session."""
    attention_mask: Tensor | None
    """(B, S) of bool: true where a token is real; its last T columns are those of the tensor. None
    where the model was called without one: all tokens are real."""
    device: torch.device
    """Where the end computes."""
    dtype: torch.dtype
    """In which the end computes: that of h1 in its model."""


class Transform:
    """One change, or one look, at what crosses the cuts of one session, at one of its ends.

    Every method gets a detached tensor (B, T, H) on the end's device and in its dtype, and returns
    one of the same shape, dtype and device: another tensor, or the same one unchanged. It must not
    write into what it got, which may share memory with the model's activations. No graph is made.

    An object is made for each session at each end, and may keep state. What leaves and what arrives
    may be handled by two threads at once.

    Args:
        spec: What both ends agreed on.
        end: The end at which this object is.

    Raises:
        ConfigError: the session is not one that it can be part of.
    """

    name: ClassVar[str]
    """The transform's name in a run's configuration and in the handshake."""
    hops: ClassVar[tuple[str, ...]] = HOPS
    """The tensors that it is applied to."""
    ends: ClassVar[tuple[End, ...]] = ("silo", "trunk")
    """The ends at which it is applied."""

    def __init__(self, spec: SessionSpec, end: End) -> None:
        self.spec = spec
        self.end = end

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """What leaves in place of `tensor`."""
        return tensor

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """What enters in place of `tensor`."""
        return tensor
