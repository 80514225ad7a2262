"""Nonlinear least squares: tensors are moved until what is made of them is as near as it can be to
what was seen, which is told from having run out of steps.

By Levenberg's and Marquardt's method: each step solves the problem's linear part, damped, by
conjugate gradients on its normal equations, of which every iteration takes one product with the
Jacobian and one with its transpose. All problems of a batch are solved at once, each with a damping
of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

INNER = 60
"""Conjugate gradients' iterations of one step at most."""
SOLVED = 1e-2
"""Relative length of the linear problem's gradient with which it is solved."""
BETTER = 0.01
"""Relative fall of an error by one step that counts as one."""
PATIENCE = 3
"""Steps in a row without such a fall after which a problem has converged; one that is rejected
counts where its damping cannot grow."""
DAMPING, LEAST, MOST = 1e-3, 1e-9, 1e3
LIGHTER, HEAVIER = 4.0, 8.0

Residuals = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """How far the problems came."""

    at: Tensor
    """(D, …): where each is at its best."""
    errors: Tensor
    """(D,): squared lengths of the residuals there."""
    steps: int
    """Iterations of conjugate gradients that were taken."""
    converged: bool
    """Whether every error had stopped to fall, or their sum is not above what was asked for."""


def solve(
    residuals: Residuals,
    begun: Tensor,
    *,
    done: float,
    most_steps: int,
    check: Callable[[], None] = lambda: None,
) -> Solved:
    """Lower the squared lengths of D residuals.

    Args:
        residuals: (d, …) of places, (d, …), and the rows of these, (d,), with a graph that can be
            derived twice; each row depends on its own place alone.
        begun: (D, …): the places to begin with.
        done: Sum of the errors with which nothing is left to gain.
        most_steps: Iterations after which errors that still fall are left.
        check: Called at every iteration.
    """
    at = begun.detach().clone()
    rows = torch.arange(len(at))
    with torch.no_grad():
        errors = _squares(residuals(at, rows))
    damping, waited = torch.full_like(errors, DAMPING), torch.zeros_like(rows)
    steps = 0
    while steps < most_steps and float(errors.sum()) > done:
        rows = (waited < PATIENCE).nonzero()[:, 0]
        if not len(rows):
            break
        linear = _Linear(residuals, at[rows], rows)
        inner = min(INNER, most_steps - steps)
        change, taken = linear.solved(damping[rows], inner, check)
        steps += taken
        moved = at[rows] + change
        with torch.no_grad():
            now = _squares(residuals(moved, rows))
        fallen = now < errors[rows]
        enough = now < errors[rows] * (1 - BETTER)
        factors = torch.where(fallen, 1 / LIGHTER, HEAVIER)
        idle = ~enough & (fallen | (damping[rows] == MOST))
        damping[rows] = (damping[rows] * factors).clamp(LEAST, MOST)
        waited[rows] = torch.where(enough, 0, waited[rows] + idle)
        at[rows[fallen]] = moved[fallen]
        errors[rows[fallen]] = now[fallen]
    ended = float(errors.sum()) <= done or bool((waited >= PATIENCE).all())
    return Solved(at=at, errors=errors, steps=steps, converged=ended)


class _Linear:
    """The residuals' linear part about a place."""

    def __init__(self, residuals: Residuals, at: Tensor, rows: Tensor) -> None:
        # The fused kernels of attention cannot be derived twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._at = at.detach().clone().requires_grad_()
            self._made = residuals(self._at, rows)
            self._cotangent = torch.zeros_like(self._made, requires_grad=True)
            (self._back,) = torch.autograd.grad(
                self._made, self._at, self._cotangent, create_graph=True
            )

    def solved(self, damping: Tensor, most: int, check: Callable[[], None]) -> tuple[Tensor, int]:
        """The change that lowers the linear part's squares most, and iterations.

        Args:
            damping: (d,): what a change's own squares weigh.
            most: Iterations at most.
            check: Called at every one.
        """
        left = -self._made.detach()
        slope = self._transposed(left)
        change, direction = torch.zeros_like(slope), slope
        length = _squares(slope)
        begun = length
        taken = 0
        while taken < most and bool((length > SOLVED**2 * begun).any()):
            check()
            taken += 1
            along = self._product(direction)
            curved = _squares(along) + damping * _squares(direction)
            step = _over(length / curved.clamp_min(1e-30), slope)
            change = change + step * direction
            left = left - _over(length / curved.clamp_min(1e-30), left) * along
            slope = self._transposed(left) - _over(damping, change) * change
            before, length = length, _squares(slope)
            direction = slope + _over(length / before.clamp_min(1e-30), slope) * direction
        return change, max(1, taken)

    def _transposed(self, cotangent: Tensor) -> Tensor:
        (made,) = torch.autograd.grad(self._made, self._at, cotangent, retain_graph=True)
        return made.detach()

    def _product(self, tangent: Tensor) -> Tensor:
        """By deriving the transposed product, which is linear in its cotangent."""
        (made,) = torch.autograd.grad(self._back, self._cotangent, tangent, retain_graph=True)
        return made.detach()


def _squares(of: Tensor) -> Tensor:
    return of.detach().square().flatten(1).sum(1)


def _over(each: Tensor, of: Tensor) -> Tensor:
    """(d,) as what (d, …) can be multiplied with."""
    return each.reshape(-1, *[1] * (of.dim() - 1))
