"""Decoding: JSON and arrays become the value that was encoded, put into a new instance of it.

Only data comes from the file. Functions, and objects that are more than their fields, are those
of the new instance, and have to be the same ones as then. A class is never imported for a name.
"""

import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_split.checkpoint.kinds import KINDS, Kind
from flower_split.checkpoint.objects import (
    MISSING,
    attributes,
    is_record,
    label,
    parts_of_code,
    set_attributes,
)
from flower_split.checkpoint.written_names import current_name
from flower_split.errors import DamagedStateError, StateError


def decode(
    tree: Any,
    arrays: Mapping[str, NDArray[Any]],
    *,
    onto: Any = MISSING,
    kinds: Sequence[Kind] = (),
    nodes: Mapping[str, int] | None = None,
) -> Any:
    """Put an encoded value together again.

    Args:
        tree: `Encoded.tree`.
        arrays: `Encoded.arrays`.
        onto: A new instance of what was encoded. Objects in it are changed in place, and are left
            half changed when decoding fails.
        kinds: Beside `KINDS`.
        nodes: Node id by name of the silo; a silo that is not there keeps the id it had.

    Raises:
        StateError: the new instance differs from the one that was encoded; says where.
        DamagedStateError: `tree` and `arrays` are not what `encode` made.
    """
    decoder = _Decoder(arrays, [*KINDS, *kinds], nodes or {})
    try:
        return decoder.decode(tree, onto, "")
    except (
        *(KeyError, IndexError, TypeError, ValueError, AttributeError),
        *(RecursionError, RuntimeError),
    ) as error:
        if isinstance(error, StateError):
            raise
        raise DamagedStateError(
            f"the saved state is not what this version writes: {type(error).__name__} at "
            f"{decoder.where or 'its top'}"
        ) from error


class _Decoder:
    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], kinds: Sequence[Kind], nodes: Mapping[str, int]
    ) -> None:
        self.where = ""
        self._arrays = arrays
        self._kinds = {kind.name: kind for kind in kinds}
        self._nodes = nodes
        self._made: dict[int, Any] = {}

    def decode(self, node: Any, onto: Any, where: str) -> Any:
        self.where = where
        if not isinstance(node, dict):
            return node
        kind = node["kind"]
        if kind == "same":
            return self._made[node["id"]]
        if kind == "list":
            return self._list(node, onto, where)
        if kind == "dict":
            return self._dict(node, onto, where)
        if kind == "object":
            return self._object(node, onto, where)
        value = self._leaf(node, onto, where)
        return self._note(node, value)

    def _leaf(self, node: dict[str, Any], onto: Any, where: str) -> Any:
        kind = node["kind"]
        if kind == "float":
            return float(node["value"])
        if kind == "node":
            return self._nodes.get(node["silo"], node["was"])
        if kind in ("array", "scalar"):
            array = self._arrays[node["array"]]
            if kind == "scalar":
                return array[()]
            return np.array(array, order="F" if node.get("order") == "F" else "C")
        if kind == "enum":
            found = _known_class(node["class"], where)
            if not issubclass(found, Enum):
                raise ValueError("not an enumeration")
            return found[node["member"]]
        if kind == "given":
            return self._same_as_then(node, onto, where)
        if kind == "code":
            self._same_as_then(node, onto, where)
            for part, own in zip(node["parts"], parts_of_code(onto) or (), strict=True):
                self.decode(part, own, where)
            return onto
        row = self._kinds[kind]
        own = row.take(onto) if type(onto) is row.type else MISSING
        return row.make(self.decode(node["parts"], own, where))

    def _list(self, node: dict[str, Any], onto: Any, where: str) -> list[Any]:
        own = onto if isinstance(onto, list) else []
        made: list[Any] = self._note(node, [])
        for index, item in enumerate(node["items"]):
            counterpart = own[index] if index < len(own) else MISSING
            made.append(self.decode(item, counterpart, f"{where}[{index}]"))
        return made

    def _dict(self, node: dict[str, Any], onto: Any, where: str) -> dict[Any, Any]:
        own = onto if isinstance(onto, dict) else {}
        made: dict[Any, Any] = self._note(node, {})
        for encoded_key, item in node["items"]:
            key = self.decode(encoded_key, MISSING, where)
            made[key] = self.decode(item, own.get(key, MISSING), f"{where}[{key!r}]")
        return made

    def _object(self, node: dict[str, Any], onto: Any, where: str) -> Any:
        if onto is not MISSING and label(onto) == node["class"]:
            made, own = onto, attributes(onto) or {}
        else:
            kind = _known_class(node["class"], where)
            if not is_record(kind):
                self._same_as_then(node, onto, where)
            made, own = object.__new__(kind), {}
        self._note(node, made)
        fields = {
            name: self.decode(entry, own.get(name, MISSING), f"{where}.{name}".lstrip("."))
            for name, entry in node["fields"].items()
        }
        set_attributes(made, fields)
        return made

    def _note(self, node: dict[str, Any], value: Any) -> Any:
        if "id" in node:
            self._made[node["id"]] = value
        return value

    def _same_as_then(self, node: dict[str, Any], onto: Any, where: str) -> Any:
        now = "not there" if onto is MISSING else label(onto)
        if now != node["class"]:
            raise StateError(
                f"{where or 'it'} was {node['class']} when the state was saved, and is {now} now: "
                "resume with the same code and the same arguments"
            )
        return onto


def _known_class(name: str, where: str) -> type:
    """The class of that name, if its module is loaded."""
    module, path = current_name(name)
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise StateError(
            f"{where} was a {name} when the state was saved, and there is no such class now: "
            "resume with the same code"
        )
    return found
