"""Encoding: any value made of numbers, arrays, containers and objects becomes JSON and arrays.

A value that occurs twice is written once, so that what was one object is one object again. Node
ids, which are new in every run, are written as names of silos where the caller knows them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_split.checkpoint.kinds import KINDS, Kind
from flower_split.checkpoint.objects import (
    attributes,
    is_given,
    is_record,
    label,
    parts_of_code,
)

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""Names of the dtypes of arrays that a checkpoint holds."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A value that cannot be kept."""

    where: str
    """`/` between the names of attributes, keys and positions."""
    kind: str
    """The written name of its class."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A value as JSON and named arrays."""

    tree: Any
    arrays: Mapping[str, NDArray[Any]]
    lost: Sequence[Lost] = ()
    """What is missing; `tree` cannot be decoded unless this is empty."""
    expected: frozenset[tuple[str, str]] = frozenset()
    """Place and class of code and objects that decoding expects a new instance to have."""


def encode(
    value: object,
    name: str,
    *,
    kinds: Sequence[Kind] = (),
    nodes: Mapping[int, str] | None = None,
    expected: frozenset[tuple[str, str]] | None = None,
) -> Encoded:
    """Take `value` apart.

    Args:
        value: It is not changed; arrays are not copied.
        name: Beginning of the names of its arrays.
        kinds: Beside `KINDS`.
        nodes: Name of the silo by node id.
        expected: `Encoded.expected` of an instance that has not run yet. What is not among it a
            new instance would not have, and is lost.
    """
    encoder = _Encoder([*KINDS, *kinds], nodes or {}, expected)
    tree = encoder.encode(value, name)
    return Encoded(
        tree=tree,
        arrays=encoder.arrays,
        lost=tuple(encoder.lost),
        expected=frozenset(encoder.found),
    )


class _Encoder:
    def __init__(
        self,
        kinds: Sequence[Kind],
        nodes: Mapping[int, str],
        expected: frozenset[tuple[str, str]] | None,
    ) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.lost: list[Lost] = []
        self.found: set[tuple[str, str]] = set()
        self._kinds = {kind.type: kind for kind in kinds}
        self._nodes = nodes
        self._expected = expected
        # The values themselves are held too, lest a temporary one's id is given away again.
        self._seen: dict[int, tuple[object, dict[str, Any]]] = {}
        self._ids = 0

    def encode(self, value: Any, where: str) -> Any:
        if type(value) is int and value in self._nodes:
            return {"kind": "node", "silo": self._nodes[value], "was": value}
        if value is None or type(value) in (str, int, bool):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"kind": "float", "value": repr(value)}
        if id(value) in self._seen:
            node = self._seen[id(value)][1]
            if "id" not in node:
                self._ids += 1
                node["id"] = self._ids
            return {"kind": "same", "id": node["id"]}
        node = {}
        self._seen[id(value)] = (value, node)
        node.update(self._node(value, where))
        return node

    def _node(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, np.generic) or type(value) is np.ndarray:
            return self._array(value, where)
        if isinstance(value, Enum):
            return {"kind": "enum", "class": label(value), "member": value.name}
        if type(value) is list:
            items = [self.encode(held, f"{where}/{i}") for i, held in enumerate(value)]
            return {"kind": "list", "items": items}
        if type(value) is dict:
            return {
                "kind": "dict",
                "items": [
                    [self.encode(key, f"{where}/key"), self.encode(held, f"{where}/{key}")]
                    for key, held in value.items()
                ],
            }
        if type(value) in self._kinds:
            kind = self._kinds[type(value)]
            try:
                parts = kind.take(value)
            except ValueError as error:
                return self._lose(value, where, str(error))
            return {"kind": kind.name, "parts": self.encode(parts, where)}
        return self._object(value, where)

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        carried = parts_of_code(value)
        if carried is not None:
            self._expect(value, where)
            parts = [self.encode(part, f"{where}/{i}") for i, part in enumerate(carried)]
            return {"kind": "code", "class": label(value), "parts": parts}
        if is_given(value):
            self._expect(value, where)
            return {"kind": "given", "class": label(value)}
        held = attributes(value)
        if held is None:
            return self._lose(value, where, "its state cannot be read")
        if not is_record(type(value)):
            self._expect(value, where)
        fields = {name: self.encode(entry, f"{where}/{name}") for name, entry in held.items()}
        return {"kind": "object", "class": label(value), "fields": fields}

    def _expect(self, value: Any, where: str) -> None:
        place = (where, label(value))
        if self._expected is not None and place not in self._expected:
            self._lose(value, where, "it was made during the run, and a new instance has none")
        self.found.add(place)

    def _array(self, value: Any, where: str) -> dict[str, Any]:
        array = np.asarray(value)
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            return self._lose(value, where, f"an array of {array.dtype}")
        name, number = where, 1
        while name in self.arrays:
            number += 1
            name = f"{where}#{number}"
        self.arrays[name] = array
        node = {"kind": "scalar" if isinstance(value, np.generic) else "array", "array": name}
        if array.flags.f_contiguous and not array.flags.c_contiguous:
            # Sums over an array depend on its layout in their last bits.
            node["order"] = "F"
        return node

    def _lose(self, value: Any, where: str, reason: str) -> dict[str, Any]:
        self.lost.append(Lost(where=where, kind=label(value), reason=reason))
        return {"kind": "lost"}
