"""Kinds of values that a checkpoint can hold, each taken apart into plainer values and remade.

The table is open: whoever knows further types, such as Flower's records, brings rows of their own.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One type of values.

    `take` gives a value's parts, which are encoded in their turn, or raises `ValueError` for a
    value that it cannot do justice to. `make` gets equal parts back and returns an equal value.
    """

    name: str
    """By which the file knows the kind; no two have the same."""
    type: type
    """Exactly this type, and no subclass of it, is of the kind."""
    take: Callable[[Any], Any]
    make: Callable[[Any], Any]


def random_parts(state: Any) -> list[Any]:
    """What `random.getstate` gives, with its 625 words as an array."""
    version, words, spare = state
    return [version, np.array(words, np.uint32), spare]


def random_state(parts: Any) -> tuple[Any, ...]:
    """What `random.setstate` takes."""
    version, words, spare = parts
    return (version, tuple(int(word) for word in words), spare)


def _remade_random(parts: Any) -> random.Random:
    made = random.Random()
    made.setstate(random_state(parts))
    return made


_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def _generator_state(value: np.random.Generator) -> Any:
    state = value.bit_generator.state
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ValueError("a bit generator that numpy does not bring")
    return dict(state)


def _remade_generator(state: Any) -> np.random.Generator:
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    made: np.random.BitGenerator = getattr(np.random, state["bit_generator"])()
    made.state = state
    return np.random.Generator(made)


def _remade_random_state(state: Any) -> np.random.RandomState:
    made = np.random.RandomState()
    made.set_state(state)
    return made


def _torch_generator_state(value: torch.Generator) -> torch.Tensor:
    if value.device.type != "cpu":
        raise ValueError(f"a random generator on {value.device}")
    return value.get_state()


def _remade_torch_generator(state: Any) -> torch.Generator:
    made = torch.Generator()
    made.set_state(state)
    return made


def _tensor_parts(value: torch.Tensor) -> list[Any]:
    if value.requires_grad or value.layout != torch.strided:
        raise ValueError("a tensor with gradients, or a sparse one")
    plain = value.detach().cpu()
    if plain.dtype == torch.bfloat16:
        return ["bfloat16", plain.view(torch.int16).numpy()]
    return ["", plain.numpy()]


def _remade_tensor(parts: Any) -> torch.Tensor:
    dtype, array = parts
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _in_order(values: Any) -> list[Any]:
    return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def _kind(name: str, type_: type, take: Callable[[Any], Any], make: Callable[[Any], Any]) -> Kind:
    return Kind(name=name, type=type_, take=take, make=make)


KINDS: tuple[Kind, ...] = (
    _kind("tuple", tuple, list, tuple),
    _kind("set", set, _in_order, set),
    _kind("frozenset", frozenset, _in_order, frozenset),
    _kind("deque", deque, lambda v: [list(v), v.maxlen], lambda p: deque(*p)),
    _kind("ordered", OrderedDict, lambda v: [list(i) for i in v.items()], lambda p: OrderedDict(p)),
    _kind("bytes", bytes, lambda v: np.array(list(v), np.uint8), bytes),
    _kind("complex", complex, lambda v: [v.real, v.imag], lambda p: complex(*p)),
    _kind("range", range, lambda v: [v.start, v.stop, v.step], lambda p: range(*p)),
    _kind("path", type(Path()), str, Path),
    _kind("tensor", torch.Tensor, _tensor_parts, _remade_tensor),
    _kind("random", random.Random, lambda v: random_parts(v.getstate()), _remade_random),
    _kind("numpy-generator", np.random.Generator, _generator_state, _remade_generator),
    _kind(
        "numpy-random-state",
        np.random.RandomState,
        lambda v: v.get_state(legacy=False),
        _remade_random_state,
    ),
    _kind("torch-generator", torch.Generator, _torch_generator_state, _remade_torch_generator),
)
"""Kinds beside the plain ones: text, numbers, lists, dicts, numpy arrays and records."""


def global_randomness() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators."""
    return {
        "python": random_parts(random.getstate()),
        "numpy": dict(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
    }


def restore_global_randomness(states: dict[str, Any]) -> None:
    """Let the global generators resume from what `global_randomness` gave."""
    random.setstate(random_state(states["python"]))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
