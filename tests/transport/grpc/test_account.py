"""Tensors are told of before they leave, and stay where that fails."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from cutting_relay import CuttingRelay, Message, Place
from hosting import hosting

from flower_split.config.wire import WireConfig
from flower_split.errors import LedgerError, TrunkUnavailableError
from flower_split.remote.border import SiloBorder
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


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_what_is_sent_again_is_the_same_to_the_bit(codec: str) -> None:
    """Also where noise was added to it: another draw would tell more than the first."""
    wire = WireConfig(h1=codec, g2=codec, h1_clip=1.0, h1_noise=1.0, g2_clip=1.0, g2_noise=1.0)
    noisy, told = spec(wire=wire), list[LeavingTensor]()
    border = SiloBorder(noisy)

    def lost(message: Message) -> Place | None:
        if message.connection < 2 and message.number:
            return "middle" if message.direction == "up" else None
        return None

    with (
        hosting(AffineBackend()) as server,
        CuttingRelay(server.address, lost) as relay,
        GrpcTransport(relay.address, noisy) as transport,
    ):
        transport.account = told.extend
        plain = forward(0)
        here = border.context(plain.hidden, step=0, microbatch=0, attention_mask=None)
        hidden = border.outgoing("h1", plain.hidden, here)
        transport.forward(replace(plain, hidden=hidden)).result(30)
        assert transport.reconnects
    assert len(told) > 1 and [one.again for one in told] == [False, *[True] * (len(told) - 1)]
    assert len({one.sha256 for one in told}) == 1
    again = border.outgoing("h1", plain.hidden, here)
    assert not torch.equal(again, hidden)
