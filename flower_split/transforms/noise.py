"""CutNoise: every token row clipped, and Gaussian noise on every element of it."""

from typing import ClassVar

import torch
from torch import Tensor

from flower_split.config.wire import HOPS
from flower_split.errors import TransformError
from flower_split.privacy import SecureNoise
from flower_split.transforms.transform import End, Transform, TransformContext
from flower_split.transport.messages import SessionSpec

_BELOW = 1 - 1e-6  # rounding to float32 makes no row longer than the bound


class CutNoise(Transform):
    """Scales down token rows that are longer than `wire.*-clip`, and adds noise to all of them.

    A row r of H elements leaves as r * min(1, C / |r|) + N(0, (z C)² I), where C is `wire.h1-clip`
    and z is `wire.h1-noise` (h2, g2, g1 alike). Each end does so with what leaves it. Rows of
    padding, and those without a gradient, get noise like all others. What arrives is as it came.
    """

    name: ClassVar[str] = "noise"

    def __init__(self, spec: SessionSpec, end: End) -> None:
        super().__init__(spec, end)
        self._clip = {hop: spec.wire.clip_of(hop) for hop in HOPS}
        self._deviation = {hop: spec.wire.deviation_of(hop) for hop in HOPS}
        self._noise = SecureNoise()

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """`tensor`, (B, T, H), clipped and with noise.

        Raises:
            TransformError: it holds something that is not finite, which no clipping bounds.
        """
        clip, deviation = self._clip[hop], self._deviation[hop]
        if not clip:
            return tensor
        norms = torch.linalg.vector_norm(tensor, dim=-1, keepdim=True, dtype=_norm_dtype(tensor))
        if not bool(torch.isfinite(norms).all()):
            raise TransformError(
                f"{hop} holds numbers that are not finite, which wire.{hop}-clip cannot bound: the "
                "training diverged, or ran over its dtype"
            )
        factors = (clip * _BELOW / norms.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1)
        rows = tensor.float() * factors.float()
        if deviation:
            drawn = self._noise.normal(tuple(tensor.shape)) * deviation
            rows = rows + drawn.float().to(tensor.device)
        leaving: Tensor = rows.to(tensor.dtype)
        return leaving


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    """Wide enough for the square of any element, where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
