"""What the wire's enums of dtypes and roles stand for."""

import torch

from flower_split.config.sections import DTYPES
from flower_split.proto import trunk_pb2 as pb

DTYPE_TO_WIRE: dict[torch.dtype, pb.DType] = {
    torch.float32: pb.DTYPE_FLOAT32,
    torch.bfloat16: pb.DTYPE_BFLOAT16,
    torch.float16: pb.DTYPE_FLOAT16,
    torch.int64: pb.DTYPE_INT64,
    torch.bool: pb.DTYPE_BOOL,
}
DTYPE_FROM_WIRE: dict[int, torch.dtype] = {int(n): dtype for dtype, n in DTYPE_TO_WIRE.items()}

ROLE_NAMES: dict[int, str] = {
    int(pb.ROLE_H1): "h1",
    int(pb.ROLE_H2): "h2",
    int(pb.ROLE_G2): "g2",
    int(pb.ROLE_G1): "g1",
    int(pb.ROLE_ATTENTION_MASK): "attention_mask",
    int(pb.ROLE_POSITION_IDS): "position_ids",
}

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
    if set(ROLE_NAMES) != set(pb.Role.values()) - {0}:
        raise ImportError("ROLE_NAMES does not cover the wire's Role")
    if set(DTYPE_BY_NAME) != set(DTYPES):
        raise ImportError("DTYPE_BY_NAME does not cover the configuration's DTYPES")


_check_complete()
