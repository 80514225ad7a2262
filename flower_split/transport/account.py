"""What is told of tensors before they leave a silo, for an account of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from flower_split.compression.raw import RAW_BOOL
from flower_split.compression.table import CODEC_TABLE
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.tables import DTYPE_FROM_WIRE, ROLE_NAMES
from flower_split.serialization.tensors import Outgoing


@dataclass(frozen=True, kw_only=True)
class LeavingTensor:
    """A tensor that is about to leave, as encoded."""

    role: str
    """What it is to the session, such as `h1`."""
    dtype: str
    """Before encoding."""
    shape: tuple[int, ...]
    codec: str
    num_bytes: int
    """As encoded."""
    sha256: str
    """Of its encoded bytes, hexadecimal."""
    again: bool
    """Whether it was sent before, over a connection that broke."""


Account: TypeAlias = Callable[[Sequence[LeavingTensor]], None]
"""Called in the thread that sends, before anything of the tensors leaves. Where it raises a
`FlowerSplitError`, nothing of them does, and the session ends."""


def leaving(outgoing: Outgoing, *, again: bool) -> LeavingTensor:
    """What is told of an encoded tensor."""
    header: pb.TensorHeader = outgoing.header
    return LeavingTensor(
        role=ROLE_NAMES[header.role],
        dtype=str(DTYPE_FROM_WIRE[header.dtype]).removeprefix("torch."),
        shape=tuple(header.shape),
        codec=RAW_BOOL.name
        if header.codec == RAW_BOOL.wire
        else CODEC_TABLE.numbered(header.codec).name,
        num_bytes=header.num_bytes,
        sha256=hashlib.sha256(outgoing.payload.numpy().data).hexdigest(),
        again=again,
    )
