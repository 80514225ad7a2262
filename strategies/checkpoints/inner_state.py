"""The state of any inner strategy, for a checkpoint: all its attributes, whatever it is made of.

Moments and momenta, adaptive clipping norms, random generators, strategies inside a strategy: what
a Flower strategy keeps is numbers, arrays, records and containers of them, and functions that a
new instance has too. Anything else would be lost, which is said before the first round.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from flower_split.checkpoint import Checkpoint, Encoded, Lost, decode, encode
from flower_split.checkpoint.kinds import Kind
from flower_split.errors import StateError
from flower_split.strategies.inner import nested

NUMPY = "numpy.ndarray"
"""How Flower calls an array that numpy can read."""

_MAY_CHANGE = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
"""Attributes that a resumed run takes from its own configuration."""

SMALLEST_NODE_ID = 1 << 32
"""Flower draws node ids of 64 bits; a smaller number in a strategy is taken for what it is."""


def _array_parts(array: Array) -> Any:
    if array.stype == NUMPY:
        return array.numpy()
    return [array.dtype, list(array.shape), array.stype, bytes(array.data)]


def _array(parts: Any) -> Array:
    if isinstance(parts, list):
        dtype, shape, stype, data = parts
        return Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data)
    return Array(parts)


def _items(record: Any) -> dict[str, Any]:
    return dict(record.items())


FLOWER_KINDS = (
    Kind(name="flower-array", type=Array, take=_array_parts, make=_array),
    Kind(name="flower-arrays", type=ArrayRecord, take=_items, make=ArrayRecord),
    Kind(name="flower-metrics", type=MetricRecord, take=_items, make=MetricRecord),
    Kind(name="flower-config", type=ConfigRecord, take=_items, make=ConfigRecord),
    Kind(name="flower-records", type=RecordDict, take=_items, make=RecordDict),
)
"""Flower's records, as kinds of what a checkpoint holds."""


class InnerState:
    """What a strategy has learned besides the arrays, taken out and put back.

    Args:
        inner: The strategy, before its first round.

    Raises:
        StateError: `inner` has something that a checkpoint cannot keep; names all of it.
    """

    def __init__(self, inner: Strategy) -> None:
        self._inner = inner
        before = encode(inner, "inner", kinds=FLOWER_KINDS)
        if before.lost:
            raise StateError(
                f"{type(inner).__name__} cannot be kept in a checkpoint:{lines(before.lost)}\n"
                "Make it of numbers, arrays and containers of them, or set checkpoint.keep to 0"
            )
        self._expected = before.expected

    def take(self, nodes: Mapping[int, str]) -> Encoded:
        """The strategy's attributes; node ids among them become the names of `nodes`.

        What `Encoded.lost` names the strategy has made since its start, and a checkpoint without
        it would not be the run's state.
        """
        real = {node: silo for node, silo in nodes.items() if node >= SMALLEST_NODE_ID}
        return encode(self._inner, "inner", kinds=FLOWER_KINDS, nodes=real, expected=self._expected)

    def put_back(self, tree: Any, checkpoint: Checkpoint, nodes: Mapping[str, int]) -> None:
        """Give the strategy the attributes that `take` found.

        Args:
            tree: `Encoded.tree`, out of the checkpoint's state.
            checkpoint: Holds the arrays.
            nodes: Node id by name of the silo, in this run.

        Raises:
            StateError: the strategy is another one, or has other arguments of code.
        """
        own = [(one, name, getattr(one, name)) for one, name in self._configured()]
        decode(tree, checkpoint.arrays, onto=self._inner, kinds=FLOWER_KINDS, nodes=nodes)
        for one, name, value in own:
            setattr(one, name, value)

    def _configured(self) -> Iterator[tuple[Strategy, str]]:
        for one in nested(self._inner):
            for name in _MAY_CHANGE:
                if name in vars(one):
                    yield one, name


def lines(lost: Iterable[Lost]) -> str:
    """What is lost, a line for each: attribute, class and reason."""
    return "".join(f"\n- {_attribute(one)} is a {one.kind}: {one.reason}" for one in lost)


def _attribute(lost: Lost) -> str:
    return lost.where.partition("/")[2].replace("/", ".") or "the strategy itself"
