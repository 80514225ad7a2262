"""Tensors are told of before they leave, and stay where that fails."""

import hashlib
from collections.abc import Sequence

import pytest
from affine_backend import AffineBackend, backward, forward, spec
from hosting import hosting

from flower_split.errors import LedgerError, TrunkUnavailableError
from flower_split.transport.account import LeavingTensor
from flower_split.transport.grpc.transport import GrpcTransport


def test_every_tensor_is_told_of_with_its_bytes() -> None:
    told: list[LeavingTensor] = []
    with hosting(AffineBackend()) as server, GrpcTransport(server.address, spec()) as transport:
        transport.account = told.extend
        request = forward(0)
        transport.forward(request).result(20)
        transport.backward(backward(0)).result(20)
        assert sum(one.num_bytes for one in told) == transport.bytes_sent
    assert [one.role for one in told] == ["h1", "g2"]
    assert told[0].sha256 == hashlib.sha256(request.hidden.numpy().tobytes()).hexdigest()
    assert told[0].shape == tuple(request.hidden.shape)
    assert (told[0].dtype, told[0].codec, told[0].again) == ("float32", "fp32", False)


def test_what_cannot_be_noted_does_not_leave() -> None:
    def full(tensors: Sequence[LeavingTensor]) -> None:
        raise LedgerError("the ledger takes no more")

    backend = AffineBackend()
    with hosting(backend) as server, GrpcTransport(server.address, spec()) as transport:
        transport.account = full
        with pytest.raises(TrunkUnavailableError, match="nothing was sent: the ledger takes no"):
            transport.forward(forward(0)).result(20)
        assert backend.count("forward") == 0
