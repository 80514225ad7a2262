"""What the wire's enums of dtypes and roles stand for."""

from typing import cast

import torch

from flower_split.config.model import DTYPES
from flower_split.config.wire import HOPS
from flower_split.proto import trunk_pb2 as pb

DTYPE_TO_WIRE: dict[torch.dtype, pb.DType] = {
    torch.float32: pb.DTYPE_FLOAT32,
    torch.bfloat16: pb.DTYPE_BFLOAT16,
    torch.float16: pb.DTYPE_FLOAT16,
    torch.int64: pb.DTYPE_INT64,
    torch.bool: pb.DTYPE_BOOL,
}
DTYPE_FROM_WIRE: dict[int, torch.dtype] = {int(n): dtype for dtype, n in DTYPE_TO_WIRE.items()}

ROLE_NUMBERS: dict[str, pb.Role] = {
    name.removeprefix("ROLE_").lower(): cast("pb.Role", number)
    for name, number in pb.Role.items()
    if number
}
ROLE_NAMES: dict[int, str] = {int(number): name for name, number in ROLE_NUMBERS.items()}

DTYPE_BY_NAME: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPE_BY_NAME.items()}


def _check_complete() -> None:
    """Raise `ImportError` where an enum or the configuration has a row that no table knows."""
    if set(DTYPE_FROM_WIRE) != set(pb.DType.values()) - {0}:
        raise ImportError("DTYPE_TO_WIRE does not cover the wire's DType")
    if not set(HOPS) < set(ROLE_NUMBERS):
        raise ImportError(f"the wire's Role {sorted(ROLE_NUMBERS)} does not cover the hops {HOPS}")
    if set(DTYPE_BY_NAME) != set(DTYPES):
        raise ImportError("DTYPE_BY_NAME does not cover the configuration's DTYPES")


_check_complete()
