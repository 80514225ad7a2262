"""What every tensor of a session must look like, by its role."""

import torch

from flower_split.compression.raw import RAW_BOOL, RAW_INT64
from flower_split.compression.table import codec_named
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import TensorRule
from flower_split.serialization.tables import DTYPE_BY_NAME
from flower_split.transport.messages import SessionSpec

ATTENTION_MASK = TensorRule(
    role=pb.ROLE_ATTENTION_MASK, dtype=torch.bool, codec=RAW_BOOL, num_dims=2
)
POSITION_IDS = TensorRule(role=pb.ROLE_POSITION_IDS, dtype=torch.int64, codec=RAW_INT64, num_dims=2)


class HopRules:
    """The rules of h1, h2, g2 and g1 under one session's dtype and codecs."""

    def __init__(self, spec: SessionSpec) -> None:
        dtype = DTYPE_BY_NAME[spec.dtype]

        def rule(role: pb.Role, codec: str) -> TensorRule:
            return TensorRule(role=role, dtype=dtype, codec=codec_named(codec), num_dims=3)

        self.h1 = rule(pb.ROLE_H1, spec.h1)
        self.h2 = rule(pb.ROLE_H2, spec.h2)
        self.g2 = rule(pb.ROLE_G2, spec.g2)
        self.g1 = rule(pb.ROLE_G1, spec.g1)
