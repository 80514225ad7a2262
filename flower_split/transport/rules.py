"""What every tensor of a session must look like, by its role."""

import torch

from flower_split.compression.raw import RAW_BOOL, RAW_INT64
from flower_split.compression.table import CODEC_TABLE
from flower_split.config.wire import HOPS
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import TensorRule
from flower_split.serialization.tables import DTYPE_BY_NAME, ROLE_NUMBERS
from flower_split.transport.messages import PREFIX, PREFIX_GRAD, SessionSpec

ATTENTION_MASK = TensorRule(
    role=pb.ROLE_ATTENTION_MASK, dtype=torch.bool, codec=RAW_BOOL, num_dims=2
)
POSITION_IDS = TensorRule(role=pb.ROLE_POSITION_IDS, dtype=torch.int64, codec=RAW_INT64, num_dims=2)
ADAPTER_UP, ADAPTER_DOWN = (
    TensorRule(role=role, dtype=torch.float32, codec=CODEC_TABLE["fp32"], num_dims=2)
    for role in (pb.ROLE_ADAPTER_UP, pb.ROLE_ADAPTER_DOWN)
)


class HopRules:
    """The rules of the four hops under one session's dtype and codecs, and those of a prefix.

    A prefix is encoded as h1 is, and its gradient as g1.

    Raises:
        ConfigError: a codec that another package adds is of no use.
    """

    def __init__(self, spec: SessionSpec) -> None:
        self._rules = {
            name: TensorRule(
                role=ROLE_NUMBERS[name],
                dtype=DTYPE_BY_NAME[spec.dtype],
                codec=CODEC_TABLE.named(getattr(spec.wire, hop)),
                num_dims=3,
            )
            for name, hop in {**{hop: hop for hop in HOPS}, PREFIX: "h1", PREFIX_GRAD: "g1"}.items()
        }

    def __getitem__(self, hop: str) -> TensorRule:
        return self._rules[hop]
