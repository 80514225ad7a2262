"""Autocast: matrix products in a narrow dtype, with weights that stay in their own.

It belongs around a forward pass alone: the backward pass runs each operation in the dtype that its
forward pass had, also where activations are computed anew.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def autocast_dtype(name: str) -> torch.dtype | None:
    """The dtype that a configuration's `autocast` names; None for `off`."""
    return None if name == "off" else getattr(torch, name)


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Compute under autocast to `dtype` meanwhile, and without any where it is None."""
    if dtype is None and not _is_on(device):
        return nullcontext()
    # Torch warns of a dtype that it does not cast to, also where it shall not cast.
    wanted = torch.get_autocast_dtype(device.type) if dtype is None else dtype
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=wanted, enabled=dtype is not None
    )
    return context


def current_autocast(device: torch.device, *, but: str = "off") -> str:
    """Name of the dtype of the autocast that is on; empty where none is, or that of `but`."""
    if not _is_on(device):
        return ""
    name = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    return "" if name == but else name


class CastWatch:
    """Notices an autocast whose context has stayed open since the last look.

    Until its outermost context closes, autocast goes on with the casts that it has made of leaves,
    whatever has become of their values since. Where any thread closes its own, all casts are gone.
    """

    def __init__(self) -> None:
        self._leaf: nn.Parameter | None = None
        self._looks = 0

    def look(self, device: torch.device) -> None:
        """Leave a mark in the casts of the autocast that is on; none where it keeps no casts."""
        if not (_is_on(device) and torch.is_autocast_cache_enabled()):
            return
        if self._leaf is None or self._leaf.device != device:
            self._leaf = nn.Parameter(torch.zeros(1, 1, device=device))
        self._leaf @ self._leaf.detach()

    def is_kept(self, device: torch.device) -> bool:
        """Whether the casts at the last look are still those that are used.

        Every call counts as another change of the values.
        """
        leaf = self._leaf
        if leaf is None or leaf.device != device:
            return False
        if not (_is_on(device) and torch.is_autocast_cache_enabled()):
            return False
        self._looks = (self._looks + 1) % 256  # which every narrow dtype has
        leaf.data.fill_(self._looks)
        return bool((leaf @ torch.ones_like(leaf)).item() != self._looks)


def as_inner(tensor: Tensor) -> Tensor:
    """`tensor` as the inside of an uncut model has it, also where a graph begins with it.

    Autocast casts a leaf once in a pass and adds up its gradients in the narrow dtype. What a layer
    computed is no leaf, but cast at every use.
    """
    return tensor.view_as(tensor) if _is_on(tensor.device) else tensor


def _is_on(device: torch.device) -> bool:
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
