"""Objects of a program's own: their attributes, and what of them a new instance has by itself."""

import logging
import threading
import types
from enum import Enum
from functools import partial
from random import SystemRandom
from typing import Any

import numpy as np
import torch

from flower_split.checkpoint.written_names import written_name

_GIVEN = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    type,
    np.ufunc,
    torch.dtype,
    torch.device,
    logging.Logger,
    logging.LoggerAdapter,
    SystemRandom,
    type(threading.Lock()),
    type(threading.RLock()),
)
"""Types of values that are no state: code, and what has nothing in it that a run could change."""

MISSING: Any = object()
"""In place of a value that is not there."""


def is_given(value: object) -> bool:
    """Whether `value` is code, or has no state of its own."""
    return isinstance(value, _GIVEN)


def is_record(kind: type) -> bool:
    """Whether instances of `kind` are nothing but their fields: dataclasses and attrs classes."""
    return not issubclass(kind, Enum) and (
        hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")
    )


def label(value: object) -> str:
    """The written name of code, or of the class of anything else."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    itself = isinstance(
        value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    )
    owner: Any = value if itself else type(value)
    return written_name(owner.__module__, owner.__qualname__)


def parts_of_code(value: object) -> list[Any] | None:
    """What a bound method or a `partial` carries with it; None of anything else."""
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, list(value.args), dict(value.keywords)]
    return None


def attributes(value: object) -> dict[str, Any] | None:
    """Every attribute of an object that consists of nothing else; None of one that does not."""
    kind = type(value)
    own = "__reduce_ex__", "__reduce__", "__getstate__"
    if any(getattr(kind, name, None) is not getattr(object, name, None) for name in own):
        if not is_record(kind):
            return None
    elif not _is_all_python(value):
        return None
    found = dict(getattr(value, "__dict__", {}))
    for base in reversed(kind.__mro__):
        slots = base.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def set_attributes(value: object, wanted: dict[str, Any]) -> None:
    """Make `wanted` all the attributes of `value`, frozen dataclasses included."""
    for name in attributes(value) or {}:
        if name not in wanted:
            object.__delattr__(value, name)
    for name, held in wanted.items():
        object.__setattr__(value, name, held)


def _is_all_python(value: object) -> bool:
    """Whether no part of `value` is out of Python's sight, as in an extension's type.

    The interpreter decides that when it is asked for the state of an object; nothing is pickled.
    """
    try:
        reduced = object.__reduce_ex__(value, 2)
    except TypeError:
        return False
    return isinstance(reduced, tuple) and not any(part is not None for part in reduced[3:5])
