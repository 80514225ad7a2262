"""Random numbers of one forward pass: whether it draws any, and drawing them apart from others'."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

RandomState = tuple[Tensor, Tensor | None]
"""State of torch's generators: the CPU's, and the device's where it is a GPU."""


class Drawing:
    """Who draws random numbers: a process has one sequence of them for each device.

    A context, that one of several threads at a time is in, and may enter again. Silos and a trunk
    that are threads of one process draw their own numbers in it, whoever else is computing.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._own = threading.local()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._own.depth = self._depth + 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._own.depth = self._depth - 1
        self._lock.release()

    @contextmanager
    def lent(self, device: torch.device) -> Iterator[None]:
        """Let others draw while a thread that may be in the context waits for them.

        Args:
            device: Where the thread draws; its numbers go on afterwards.
        """
        depth = self._depth
        if not depth:
            yield
            return
        state = random_state(device)
        for _ in range(depth):
            self._lock.release()
        self._own.depth = 0
        try:
            yield
        finally:
            for _ in range(depth):
                self._lock.acquire()
            self._own.depth = depth
            set_random_state(device, state)

    @property
    def _depth(self) -> int:
        return getattr(self._own, "depth", 0)


DRAWING = Drawing()


@contextmanager
def random_numbers(device: torch.device, seed: int | None) -> Iterator[None]:
    """Draw random numbers that start at `seed` meanwhile, and the caller's own afterwards.

    No other thread draws meanwhile.

    Args:
        device: Where the model is; the CPU's generator is always included.
        seed: 0 to 2^63 - 1; None changes nothing, here and afterwards.
    """
    if seed is None:
        yield
        return
    with DRAWING:
        before = random_state(device)
        try:
            torch.manual_seed(seed)
            yield
        finally:
            set_random_state(device, before)


@contextmanager
def numbers_from(device: torch.device, seed: int) -> Iterator[None]:
    """As `random_numbers`, for a while in which other threads may draw from the same sequence."""
    with DRAWING:
        before = random_state(device)
        torch.manual_seed(seed)
    try:
        yield
    finally:
        with DRAWING:
            set_random_state(device, before)


@contextmanager
def numbers_aside(device: torch.device | None = None) -> Iterator[None]:
    """Draw whatever is drawn meanwhile, alone, from a copy of the sequence.

    Args:
        device: Where besides the CPU; None for nowhere.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with DRAWING, torch.random.fork_rng(devices=devices):
        yield


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


def others_draw(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Of a layer that waits for another party, which may draw random numbers in this process."""

    @wraps(forward)
    def waiting(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        with DRAWING.lent(hidden_states.device):
            return forward(layer, hidden_states, *args, **kwargs)

    return waiting


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

    Stock models drop out by modules and by functions whose rates are settings, and adapters by
    functions with a rate for each adapter's name. The rates of heads that no causal language model
    has do not count; those of other parts do, wherever these are.
    """
    rates = (
        value
        for name, value in config.to_dict().items()
        if ("drop" in name or "jitter" in name)
        and not name.startswith(OTHER_HEADS)
        and isinstance(value, float | int)
    )
    return any(rates) or any(map(_drops, module.modules()))


def _drops(part: nn.Module) -> bool:
    if "Dropout" in type(part).__name__:  # also those of adapters that are no subclass of torch's
        rate: Any = getattr(part, "p", 0.0)
        return bool(rate > 0)
    own = (value for name, value in vars(part).items() if "dropout" in name)
    return any(any(value.values()) for value in own if isinstance(value, Mapping))
