"""The two parts of an adapter in Flower's records: the silo's, which travels, and the trunk's.

Silos get and return their own part only; the inner strategy sees both together, in the order of
the uncut model's parameters, as if the model had never been cut. Where silos choose how many layers
they hold, tensors of the layers that either party may hold are given to both: who has them is known
when the silo has opened its session, and the other leaves them. A strategy that knows of LoRA sends
each silo tensors of its own rank, perhaps not all of them, and with folded factors and control
variates among them: those belong to whoever holds the adapter tensor they are named after.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.lowrank import CONTROL, Instructions, adapter_name, at_rank, part_of
from flower_split.optimization.magnitude import LARGEST
from flower_split.transport.arrays import read_array, shortened

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class AdapterParts:
    """Names, shapes and owner of every adapter tensor that the inner strategy sees.

    Args:
        shapes: Name and shape of those tensors at the run's rank, in the uncut model's order.
        trunk_names: The ones that the trunk holds for some silo.
        either_names: Those of them that another silo holds itself.
    """

    def __init__(
        self, shapes: Shapes, trunk_names: Iterable[str], either_names: Iterable[str] = ()
    ) -> None:
        self.shapes = dict(shapes)
        trunk = frozenset(trunk_names)
        self._either = frozenset(either_names)
        self.trunk_shapes = {n: shape for n, shape in self.shapes.items() if n in trunk}
        self.silo_shapes = {
            n: shape for n, shape in self.shapes.items() if n not in trunk or n in self._either
        }

    def split(
        self, arrays: ArrayRecord, instructions: Instructions | None = None
    ) -> tuple[ArrayRecord, dict[str, Tensor]]:
        """The silo's part as float32 arrays and the trunk's as float32 tensors.

        What either may hold is in both. A float64 array, which some strategies make, is rounded;
        `arrays` stays as it is.

        Args:
            arrays: Of a message of the inner strategy.
            instructions: Of the same message. Without a scale of their own they are those of a
                strategy that knows nothing of LoRA, and `arrays` must be the whole adapter.

        Raises:
            AdapterError: `arrays` is no such adapter, or has values that are not finite.
        """
        tailored = instructions is not None and instructions.scale is not None
        optional = instructions.personal if instructions is not None else ()
        values = decode(arrays, self._fitting(arrays, optional) if tailored else self.shapes)
        trunk = {n: torch.from_numpy(v) for n, v in values.items() if self._is_of_trunk(n)}
        both = {name for name in trunk if self._is_of_either(name)}
        silo = {n: Array(value) for n, value in values.items() if n not in trunk or n in both}
        return ArrayRecord(silo), trunk

    def join(
        self, silo: ArrayRecord, trunk: Mapping[str, Tensor], expected: Shapes | None = None
    ) -> ArrayRecord:
        """What a silo would have sent of the uncut model.

        Args:
            silo: The silo's part.
            trunk: The trunk's. Of what either may hold, the silo must bring what is missing here.
            expected: Name and shape of both together, in order; None for the whole adapter at the
                run's rank.

        Raises:
            AdapterError: `silo` is not the silo's part in float32, or a value is not finite or
                beyond `LARGEST`.
        """
        expected = self.shapes if expected is None else expected
        of_trunk = {name: s for name, s in expected.items() if self._is_brought_by(trunk, name)}
        of_silo = {name: s for name, s in expected.items() if name not in of_trunk}
        made = to_arrays({name: trunk[name] for name in of_trunk})
        for values in (decode(silo, of_silo, dtype="float32"), decode(made, of_trunk)):
            for name, value in values.items():
                check_range(name, value)
        return ArrayRecord({name: made[name] if name in made else silo[name] for name in expected})

    def replied(
        self, instructions: Instructions, controls: Iterable[str], rank: int | None
    ) -> Shapes:
        """Name and shape of what a silo replies, in the uncut model's order.

        Args:
            instructions: Of the message that it replies to.
            controls: Names of the control variates in that message.
            rank: Of the silo's adapter; None where the method is not plain LoRA.
        """
        if rank is None or (instructions.scale is None and instructions.sends_all):
            return self.shapes
        trained = [n for n in self.shapes if part_of(n) in instructions.trains]
        sent = {
            n: at_rank(n, self.shapes[n], rank) for n in trained if n not in instructions.personal
        }
        given = frozenset(controls)
        return sent | {
            CONTROL + n: at_rank(n, self.shapes[n], rank) for n in trained if CONTROL + n in given
        }

    def to_state(self, arrays: ArrayRecord) -> dict[str, Tensor]:
        """An adapter of any ranks, with what was folded into the model, as float32 tensors.

        They come in the uncut model's order, the folded ones after all others.

        Raises:
            AdapterError: `arrays` is not an adapter of this model, or has values that are not
                finite.
        """
        values = decode(arrays, self._fitting(arrays))
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def checked(self, arrays: ArrayRecord, *, any_ranks: bool) -> ArrayRecord:
        """`arrays` in the uncut model's order.

        Args:
            arrays: A whole adapter.
            any_ranks: Whether its modules may have other ranks than the run's, and folded factors.

        Raises:
            AdapterError: it is no such adapter, or has values that are not finite.
        """
        values = decode(arrays, self._fitting(arrays) if any_ranks else self.shapes)
        return ArrayRecord({name: arrays[name] for name in values})

    def _fitting(self, arrays: ArrayRecord, optional: Iterable[str] = ()) -> Shapes:
        """Name and shape that `arrays` must have to be an adapter of any ranks of this model.

        Args:
            arrays: With folded factors and control variates among them, or without.
            optional: Names of adapter tensors that need not be there.
        """
        left_out = frozenset(optional) - arrays.keys()
        owners = {name: name for name in self.shapes if name not in left_out}
        for name in arrays:
            if name not in owners and (owner := _owner(name)) in self.shapes:
                owners[name] = owner
        return {n: _at_own_rank(n, self.shapes[owner], arrays) for n, owner in owners.items()}

    def _is_of_trunk(self, name: str) -> bool:
        return name in self.trunk_shapes or _owner(name) in self.trunk_shapes

    def _is_of_either(self, name: str) -> bool:
        return bool(self._either) and (name in self._either or _owner(name) in self._either)

    def _is_brought_by(self, trunk: Mapping[str, Tensor], name: str) -> bool:
        return self._is_of_trunk(name) and (name in trunk or not self._is_of_either(name))


def _owner(name: str) -> str:
    """The adapter tensor that `name` is named after; `name` itself where it is no LoRA tensor."""
    try:
        return adapter_name(name)
    except AdapterError:
        return name


def _at_own_rank(name: str, shape: Shape, arrays: ArrayRecord) -> Shape:
    """`shape` at the rank that the tensor `name` of `arrays` has; as it is where it has none."""
    try:
        axis = 0 if part_of(_owner(name)) == "A" else 1
        return at_rank(_owner(name), shape, arrays[name].shape[axis])
    except (AdapterError, KeyError, IndexError):
        return shape


def to_arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Flower's record of float32 CPU tensors, in their order."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Float32 copies of all arrays, in their order."""
    return {
        name: torch.from_numpy(np.asarray(read_array(name, array), dtype=np.float32, order="C"))
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
            f"the adapter has {len(missing)} tensors missing{first_of(missing)} and "
            f"{len(unknown)} unknown{first_of(unknown)}"
        )
    values = {}
    for name, shape in shapes.items():
        array = arrays[name]
        if tuple(array.shape) != shape:
            told = shortened(tuple(array.shape))
            raise AdapterError(f"{name} has shape {told}, expected {shape}")
        if dtype is not None and array.dtype != dtype:
            raise AdapterError(f"{name} is {shortened(array.dtype)}, expected {dtype}")
        values[name] = np.asarray(read_array(name, array), dtype=np.float32, order="C")
        _check_finite(name, values[name])
    return values


def check_range(name: str, values: NDArray[np.float32]) -> None:
    """Raise `AdapterError` where a tensor of a reply has a value that cannot be aggregated."""
    _check_finite(name, values)
    if values.size and np.abs(values).max() > LARGEST:
        raise AdapterError(f"{name} has values beyond {LARGEST:g}: the training diverged")


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise AdapterError(f"{name} has values that are not finite: the training diverged")


def first_of(names: Iterable[str]) -> str:
    """The first of `names` in brackets, for the text of an error; empty where there is none."""
    ordered = sorted(names)
    return f" (first: {shortened(ordered[0])})" if ordered else ""
