"""Random numbers of one forward pass: whether it draws any, and drawing them apart from others'."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

RandomState = tuple[Tensor, Tensor | None]
"""State of torch's generators: the CPU's, and the device's where it is a GPU."""


@contextmanager
def random_numbers(device: torch.device, seed: int | None) -> Iterator[None]:
    """Draw random numbers that start at `seed` meanwhile, and the caller's own afterwards.

    Args:
        device: Where the model is; the CPU's generator is always included.
        seed: 0 to 2^63 - 1; None changes nothing, here and afterwards.
    """
    if seed is None:
        yield
        return
    before = random_state(device)
    try:
        torch.manual_seed(seed)
        yield
    finally:
        set_random_state(device, before)


def random_state(device: torch.device) -> RandomState:
    """The state that `set_random_state` puts back."""
    on_gpu: Tensor | None = None
    if device.type == "cuda":
        on_gpu = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        on_gpu = torch.mps.get_rng_state()
    return torch.get_rng_state(), on_gpu


def set_random_state(device: torch.device, state: RandomState) -> None:
    """Resume drawing where `random_state` was called."""
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is None:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(on_gpu, device)
    else:
        torch.mps.set_rng_state(on_gpu)


DRAWING = threading.RLock()
"""Held by each of several threads that compute at once while it draws random numbers: a process has
one sequence of them for each device."""


@dataclass(kw_only=True, eq=False)
class LayerDraws:
    """Random numbers of one pass through some of a trunk's layers, others of which draw elsewhere.

    What the stock model draws outside its layers is not counted: only the first ones' is needed.
    """

    before: RandomState | None = None
    """Where the layers before these have stopped; None where there are none."""
    after: RandomState | None = None
    """Where these have stopped, once they are computed."""


OTHER_HEADS = ("classifier_", "summary_")
"""How the settings of heads begin that classify sequences or tokens, in all families."""


def has_dropout(module: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether anything is dropped or jittered in training mode, as far as can be told.

    Stock models drop out by modules and by functions whose rates are settings. The rates of heads
    that no causal language model has do not count; those of other parts do, wherever these are.
    """
    rates = (
        value
        for name, value in config.to_dict().items()
        if ("drop" in name or "jitter" in name)
        and not name.startswith(OTHER_HEADS)
        and isinstance(value, float | int)
    )
    return any(rates) or any(
        isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in module.modules()
    )
