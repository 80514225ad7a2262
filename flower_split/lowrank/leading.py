"""Leading components: the best approximation of an update by one of a given rank.

By Eckart & Young it is the update's truncated singular value decomposition U S Vᵀ. It comes as
b = U S and a = Vᵀ, ordered by singular value, so that the first components are the best
approximation of any smaller rank, and so that a component with the singular value 0 can still be
trained (b = 0 and a is not, as in a fresh adapter).
"""

import torch
from torch import Tensor

from flower_split.lowrank.factors import Factors

DIRECT_UP_TO = 1024
"""Size up to which all components are computed to find the leading ones."""

ENERGY = 1e-9
"""Relative gain of the captured squared norm at which the block Krylov iteration stops."""


def leading(update: Factors, rank: int, *, negligible: float = 0.0) -> Factors:
    """The best approximation of `update` with at most `rank` components, and scale 1.

    With M = L Qᵀ, Q an orthonormal basis of the rows of a, the eigenvectors of LᵀL are M's right
    singular vectors in that basis: one QR and one symmetric eigenvalue problem, no larger than
    the smaller of the update's rank and inputs. Where that is above 1024, a block Krylov
    iteration (Musco & Musco 2015, arXiv:1504.05477) finds the few that are asked for.

    Args:
        update: Of any rank; float64 is advised.
        rank: Components wanted; fewer come when the update's shape does not have as many.
        negligible: Components whose singular value is at most this part of the largest are
            dropped, all but one.
    """
    b, a = update.b * update.scale, update.a
    size = min(update.rank, a.shape[1])
    if size > DIRECT_UP_TO and 8 * rank <= min(size, b.shape[0]):
        basis, image = _krylov(b, a, rank)
    else:
        basis, triangle = torch.linalg.qr(a.T)
        image = b @ triangle.T
    found = Factors(a=basis.T, b=image)
    rotation = _eigenvectors(image.T @ image)
    rotation = rotation[:, : min(rank, found.full_rank, rotation.shape[1])]
    values = image @ rotation
    sizes = values.norm(dim=0)
    large = sizes > negligible * sizes.max()
    large[0] = True
    return Factors(a=(basis @ rotation[:, large]).T.contiguous(), b=values[:, large].contiguous())


def _eigenvectors(symmetric: Tensor) -> Tensor:
    """Eigenvectors by descending eigenvalue, one a column."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors.flip(1)


def _krylov(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (inputs, m) with the leading right singular vectors, and its image."""
    inputs, width = a.shape[1], rank + 16
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(inputs, width, generator=generator, dtype=a.dtype).to(a.device)
    basis = torch.linalg.qr(a.T @ (a @ block)).Q
    image = b @ (a @ basis)
    captured = 0.0
    newest = image
    while True:
        energy = float(torch.linalg.eigvalsh(image.T @ image)[-rank:].sum())
        if energy - captured <= ENERGY * energy or basis.shape[1] + width > min(a.shape):
            return basis, image
        captured = energy
        block = a.T @ (b.T @ newest)
        for _ in range(2):  # twice is enough to stay orthogonal in floating point
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        newest = b @ (a @ block)
        basis, image = torch.cat([basis, block], dim=1), torch.cat([image, newest], dim=1)
