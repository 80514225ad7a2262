"""The trunk's border: tensors between a session and the trunk's layers."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flower_split.devices import to_device
from flower_split.transforms import TransformChain, TransformContext
from flower_split.transport.messages import PREFIX, ForwardRequest, SessionSpec


class Place(Protocol):
    """Where layers compute; a `Trunk` is one."""

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Their device."""
        ...


class TrunkBorder:
    """Where one session's tensors enter the trunk and leave it.

    Args:
        trunk: The layers, which stay on their device and in their dtype.
        spec: What the session agreed on.

    Raises:
        HandshakeError: a transform of the session is of no use here.
    """

    def __init__(self, trunk: Place, spec: SessionSpec) -> None:
        self._chain = TransformChain(spec, "trunk")
        self._dtype, self._device = trunk.dtype, trunk.device

    def enter(self, request: ForwardRequest) -> ForwardRequest:
        """The request with h1 in the trunk's dtype, and all its tensors on the trunk's device.

        Raises:
            WireError: h1 has not the session's dtype.
            TransformError: a transform failed.
        """
        mask, positions = request.attention_mask, request.position_ids
        entered = replace(
            request,
            attention_mask=None if mask is None else to_device(mask, self._device),
            position_ids=None if positions is None else to_device(positions, self._device),
        )
        entered = replace(entered, hidden=self.incoming("h1", request.hidden, entered))
        if request.prefix is None:
            return entered
        return replace(entered, prefix=self.incoming(PREFIX, request.prefix, entered))

    def incoming(self, hop: str, tensor: Tensor, microbatch: ForwardRequest) -> Tensor:
        """h1 or g2, (B, T, H), in the trunk's dtype and on its device.

        Args:
            hop: Which of them.
            tensor: As the session carried it.
            microbatch: The request that began the microbatch, as it entered.

        Raises:
            WireError: it has not the session's dtype.
            TransformError: a transform failed.
        """
        return self._chain.incoming(hop, tensor, self._context(microbatch))

    def outgoing(self, hop: str, tensor: Tensor, microbatch: ForwardRequest) -> Tensor:
        """h2 or g1, (B, T, H), detached, in the session's dtype; on the trunk's device still.

        Raises:
            TransformError: a transform failed.
        """
        return self._chain.outgoing(hop, tensor, self._context(microbatch))

    def _context(self, microbatch: ForwardRequest) -> TransformContext:
        return TransformContext(
            step=microbatch.step,
            microbatch=microbatch.microbatch,
            attention_mask=microbatch.attention_mask,
            device=self._device,
            dtype=self._dtype,
        )
