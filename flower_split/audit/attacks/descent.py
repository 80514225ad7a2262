"""Descent: tensors are moved until a loss no longer falls, which is told from having run out of
steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = 10
"""Steps between looks at the loss."""
BETTER = 0.01
"""Relative fall between two looks that counts as one."""
LOWERED = 3
"""Times that the rate is lowered; after the last one the descent has converged."""


@dataclass(frozen=True, kw_only=True)
class Descended:
    """How a descent ended."""

    steps: int
    loss: float
    converged: bool
    """Whether the loss had stopped to fall, or is below what was asked for."""


def descend(
    tensors: Sequence[Tensor],
    loss_of: Callable[[], Tensor],
    *,
    rate: float,
    most_steps: int,
    done: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> Descended:
    """Adam, whose rate is quartered where the loss no longer falls. `tensors` end at the best.

    Args:
        tensors: Leaves that are changed in place.
        loss_of: The loss, a scalar with a graph down to them.
        rate: To begin with.
        most_steps: After which a loss that still falls is left.
        done: Loss with which nothing is left to gain.
        check: Called at every step.
    """
    optimizer = torch.optim.Adam(list(tensors), lr=rate)
    best, seen, lowered, step = float("inf"), float("inf"), 0, 0
    held = [one.detach().clone() for one in tensors]
    while step < most_steps and lowered < LOWERED and best > done:
        check()
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = loss_of()
            loss.backward()
        now = float(loss.detach())
        if now < best:
            best = now
            held = [one.detach().clone() for one in tensors]
        optimizer.step()
        step += 1
        if step % EVERY:
            continue
        if best > seen * (1 - BETTER):
            lowered += 1
            for group in optimizer.param_groups:
                group["lr"] /= 4
        seen = best
    with torch.no_grad():
        for one, kept in zip(tensors, held, strict=True):
            one.copy_(kept)
    return Descended(steps=step, loss=best, converged=lowered >= LOWERED or best <= done)
