"""The two parts of an adapter in Flower's records: the silo's, which travels, and the trunk's.

Silos get and return their own part only; the inner strategy sees both together, in the order of
the uncut model's parameters, as if the model had never been cut.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from flower_split.errors import AdapterError

Shapes = Mapping[str, tuple[int, ...]]


class AdapterParts:
    """Names, shapes and owner of every adapter tensor that the inner strategy sees.

    Args:
        shapes: Name and shape of those tensors, in the uncut model's order.
        trunk_names: The ones that the trunk holds.
    """

    def __init__(self, shapes: Shapes, trunk_names: Iterable[str]) -> None:
        self.shapes = dict(shapes)
        trunk = frozenset(trunk_names)
        self.trunk_shapes = {n: shape for n, shape in self.shapes.items() if n in trunk}
        self.silo_shapes = {n: shape for n, shape in self.shapes.items() if n not in trunk}

    def split(self, arrays: ArrayRecord) -> tuple[ArrayRecord, dict[str, Tensor]]:
        """The silo's part as float32 arrays and the trunk's as float32 tensors.

        A float64 array, which some strategies make, is rounded; `arrays` stays as it is.

        Raises:
            AdapterError: `arrays` is not the whole adapter, or has values that are not finite.
        """
        values = decode(arrays, self.shapes)
        silo = ArrayRecord({name: Array(values[name]) for name in self.silo_shapes})
        return silo, {name: torch.from_numpy(values[name]) for name in self.trunk_shapes}

    def join(self, silo: ArrayRecord, trunk: Mapping[str, Tensor]) -> ArrayRecord:
        """The whole adapter of one silo, in the uncut model's order.

        Raises:
            AdapterError: `silo` is not the silo's part in float32, or a value is not finite.
        """
        decode(silo, self.silo_shapes, dtype="float32")
        made = to_arrays({name: trunk[name] for name in self.trunk_shapes})
        decode(made, self.trunk_shapes)
        return ArrayRecord(
            {name: made[name] if name in made else silo[name] for name in self.shapes}
        )

    def to_state(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """The whole adapter as float32 tensors, in the uncut model's order.

        Raises:
            AdapterError: `arrays` is not the whole adapter, or has values that are not finite.
        """
        values = decode(arrays, self.shapes)
        return {name: torch.from_numpy(value) for name, value in values.items()}


def to_arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Flower's record of float32 CPU tensors, in their order."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Float32 copies of all arrays, in their order."""
    return {
        name: torch.from_numpy(np.array(array.numpy(), dtype=np.float32, order="C"))
        for name, array in arrays.items()
    }


def decode(
    arrays: ArrayRecord, shapes: Shapes, *, dtype: str | None = None
) -> dict[str, NDArray[np.float32]]:
    """Float32 copies of exactly the tensors in `shapes`, in their order.

    Raises:
        AdapterError: names or shapes differ, a dtype is not `dtype`, or a value is not finite.
    """
    missing, unknown = shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys()
    if missing or unknown:
        raise AdapterError(
            f"the adapter has {len(missing)} tensors missing{_first(missing)} and "
            f"{len(unknown)} unknown{_first(unknown)}"
        )
    values = {}
    for name, shape in shapes.items():
        array = arrays[name]
        if tuple(array.shape) != shape:
            raise AdapterError(f"{name} has shape {tuple(array.shape)}, expected {shape}")
        if dtype is not None and array.dtype != dtype:
            raise AdapterError(f"{name} is {array.dtype}, expected {dtype}")
        values[name] = np.array(array.numpy(), dtype=np.float32, order="C")
        if not np.isfinite(values[name]).all():
            raise AdapterError(f"{name} has values that are not finite: the training diverged")
    return values


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f" (first: {ordered[0]})" if ordered else ""
