"""`MakingBound`: what a run's adapter may cost a service while PEFT makes it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flower_split.errors import TrunkBusyError

LEAST_BYTES = 1 << 30
"""That may be made however small a run's share of memory is: PEFT tries an adapter out first."""


class MakingBound(TorchDispatchMode):
    """A context in which the calling thread makes tensors of so many bytes, in so many seconds.

    What is made counts whether it is kept or not, and before it is allocated where its size can be
    told from what it is made of. Nothing on the meta device counts, which takes no memory. Can be
    entered again, and goes on counting.

    Args:
        max_bytes: Of all tensors together, and of a single one a quarter of it.
        seconds: Of all times in it together, as they are looked at between two operations.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._max_bytes = max(LEAST_BYTES, max_bytes)
        self._most_of_one = max(LEAST_BYTES, max_bytes // 4)
        self._left = seconds
        self._seconds = seconds
        self._clock = clock
        self._since = 0.0
        self._made = 0

    def __enter__(self) -> Self:
        self._since = self._clock()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left -= self._clock() - self._since
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type[Any]],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if self._clock() - self._since > self._left:
            raise TrunkBusyError(
                f"the run's adapter takes more than {self._seconds:g} s to begin with, and the "
                "others' runs wait meanwhile: choose another start of it, or leave trunk.service "
                "empty"
            )
        makes = not any(result.alias_info for result in func._schema.returns)
        if makes:
            told = _told_bytes(func, args, given)
            if told > self._most_of_one:
                raise self._too_much()
            self._check(told)
        made = func(*args, **given)
        if makes:
            self._made += sum(t.nbytes for t in _tensors((made,)) if not t.is_meta)
            self._check(0)
        return made

    def _check(self, more: int) -> None:
        if self._made + more > self._max_bytes:
            raise self._too_much()

    def _too_much(self) -> TrunkBusyError:
        return TrunkBusyError(
            "the run's adapter is too large for the run's share of the trunk service's memory: "
            "lower lora.r and the sizes under peft, or raise the service's --run-gib"
        )


def _told_bytes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Bytes of what an operation will make, as far as its arguments tell them."""
    held, device = list(_tensors(args)), kwargs.get("device")
    where = torch.device(device) if device is not None else (held[0].device if held else None)
    if where is not None and where.type == "meta":
        return 0
    plain = [number for number in args if type(number) is int] if not held else []
    sizes = [*plain]
    if plain and func.overloadpacket is torch.ops.aten.eye:
        sizes.append(plain[0] * plain[-1])
    sizes += [
        math.prod(numbers)
        for numbers in args
        if isinstance(numbers, (list, tuple)) and all(type(number) is int for number in numbers)
    ]
    sizes += [tensor.numel() for tensor in held]
    matrices = [tensor for tensor in held if tensor.dim() == 2]
    if len(matrices) > 1:
        sizes.append(matrices[-2].shape[0] * matrices[-1].shape[1])
    dtype = kwargs.get("dtype") or (held[0].dtype if held else torch.get_default_dtype())
    return max(sizes, default=0) * int(dtype.itemsize)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
