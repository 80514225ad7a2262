"""Gradient clipping by the global norm over both sides of the cut.

The global norm is the 2-norm of the per-tensor 2-norms (Pascanu et al. 2013, arXiv:1211.5063),
as `torch.nn.utils.clip_grad_norm_` computes it. The parties exchange the per-tensor norms and
each takes the norm of all of them in the order of the uncut model's parameters, so that the
result is the uncut model's to the bit.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from flower_split.errors import WireError


def gradient_norms(parameters: Iterable[Tensor]) -> tuple[float, ...]:
    """2-norm of every gradient that is there, in the order given; float32 values."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return tuple(torch.stack(norms).tolist()) if norms else ()


def global_norm(norms: Sequence[float]) -> Tensor:
    """2-norm of per-tensor norms; a float32 scalar, 0 when there are none."""
    total: Tensor = torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float32))
    return total


def clip_by_global_norm(
    parameters: Iterable[Tensor], norms: Sequence[float], max_norm: float
) -> float:
    """Scale the gradients of `parameters` in place so that the global norm is at most `max_norm`.

    `norms` are those of all parties' tensors. Returns the global norm before clipping.
    """
    total = global_norm(norms)
    clip_grads_with_norm_(list(parameters), max_norm, total)
    return float(total)


LARGEST_NORM = 1e18
"""Of a gradient: the squares of such norms still add up in float32. By a larger one, clipping would
scale the gradients of both parties to zeros, and training would go on without learning anything."""


def checked_norms(norms: Sequence[float]) -> tuple[float, ...]:
    """`norms` as they came from a peer.

    Raises:
        WireError: one is negative, not finite, or beyond `LARGEST_NORM`.
    """
    for position, norm in enumerate(norms):
        if not 0 <= norm <= LARGEST_NORM:
            raise WireError(
                f"gradient norm number {position} is {norm:g}, expected 0 to {LARGEST_NORM:g}. The "
                "training diverged: lower the learning rate"
            )
    return tuple(norms)
