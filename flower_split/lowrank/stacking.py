"""Stacking: a weighted sum of updates as one update, exactly, and without more rank than needed.

Of the updates s_i B_i A_i with weights w_i it is [w_1 s_1 B_1 … w_k s_k B_k] [A_1; …; A_k]. Where
the stacked rank exceeds min(inputs, outputs) the dense update is smaller than its factors, and is
summed up instead, with an identity as the other factor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_split.lowrank.factors import Factors
from flower_split.lowrank.leading import leading

SMALL = 256
"""Rank, or size of the module's smaller side, up to which needless rank is searched for."""

NEGLIGIBLE = 2.0**-26
"""Singular values below this part of the largest are lost in float32 anyway."""


def stacked(updates: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The sum of `weights[i] * updates[i]`, with scale 1, of rank at most min(inputs, outputs).

    Args:
        updates: Of one module, of any ranks and scales; at least one.
        weights: One for each.
    """
    if sum(update.rank for update in updates) <= updates[0].full_rank:
        scaled = [u.b * (w * u.scale) for u, w in zip(updates, weights, strict=True)]
        return Factors(a=torch.cat([u.a for u in updates]), b=torch.cat(scaled, dim=1))
    total = torch.zeros(
        updates[0].b.shape[0],
        updates[0].a.shape[1],
        dtype=updates[0].a.dtype,
        device=updates[0].a.device,
    )
    for update, weight in zip(updates, weights, strict=True):
        total.addmm_(update.b, update.a, alpha=weight * update.scale)
    return of_dense(total)


def of_dense(update: Tensor) -> Factors:
    """A dense update (outputs, inputs) as factors, the smaller side's identity being one."""
    outputs, inputs = update.shape
    identity = torch.eye(min(outputs, inputs), dtype=update.dtype, device=update.device)
    if inputs <= outputs:
        return Factors(a=identity, b=update)
    return Factors(a=update, b=identity)


def recompressed(update: Factors) -> Factors:
    """The same update with no more rank than needed, as far as that is cheap to find out.

    Small ones lose what is below float32's rounding, by QR and an eigenvalue decomposition. The
    rank of larger ones is only bounded by min(inputs, outputs).
    """
    if min(update.rank, update.full_rank) <= SMALL:
        return leading(update, update.full_rank, negligible=NEGLIGIBLE)
    return update if update.rank <= update.full_rank else of_dense(update.product())
