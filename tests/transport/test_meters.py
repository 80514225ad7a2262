"""Both ends count the same bytes, and they are the bytes that the socket carried."""

import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from hosting import hosting
from throughput.slow_link import slow_link

from flower_split.config.sections import CODECS, WireConfig
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.local import InProcessTransport
from flower_split.transport.messages import WireBytes

SHAPE = (3, 200, 1024)
NUMBERS = 3 * 200 * 1024
FRAMING, OVERHEAD = 0.01, 1 << 13
"""What HTTP/2, gRPC and protobuf may add: a share of the payload, and bytes a session."""


def test_both_ends_count_each_hop_by_its_codec() -> None:
    agreed = spec(wire=WireConfig(h1="int8", h2="nf4", g2="bf16", g1="fp32"))
    mask = torch.ones(3, 200, dtype=torch.bool)
    positions = torch.arange(200)[None]
    expected = WireBytes(
        h1=NUMBERS + NUMBERS // 32,
        h2=NUMBERS // 2 + NUMBERS // 32,
        g2=2 * NUMBERS,
        g1=4 * NUMBERS,
        context=3 * 200 + 8 * 200,
    )
    with (
        hosting(AffineBackend()) as server,
        slow_link(server.port) as proxy,
        GrpcTransport(proxy.address, agreed) as remote,
        InProcessTransport(AffineBackend(), agreed) as local,
    ):
        request = forward(0, *SHAPE, attention_mask=mask, position_ids=positions)
        for transport in (remote, local):
            transport.forward(request).result()
            transport.backward(backward(0, *SHAPE)).result()
            assert transport.wire_bytes == expected
            assert transport.finish().wire_bytes == expected
    assert expected.upward <= proxy.upward <= (1 + FRAMING) * expected.upward + OVERHEAD
    assert expected.downward <= proxy.downward <= (1 + FRAMING) * expected.downward + OVERHEAD


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_the_socket_carries_what_was_counted(codec: str, encrypted: bool) -> None:
    agreed = spec(wire=WireConfig.uniform(codec))
    tls = ServerTls.ephemeral() if encrypted else None
    trust = None if tls is None else ClientTls(ca=tls.ca)
    with (
        hosting(AffineBackend(), tls=tls) as server,
        slow_link(server.port) as proxy,
        GrpcTransport(proxy.address, agreed, tls=trust) as transport,
    ):
        for number in range(3):
            transport.forward(forward(number, *SHAPE)).result()
            transport.backward(backward(number, *SHAPE)).result()
        counted = transport.finish().wire_bytes
    assert counted == transport.wire_bytes
    for carried, payload in ((proxy.upward, counted.upward), (proxy.downward, counted.downward)):
        assert payload <= carried <= (1 + FRAMING) * payload + OVERHEAD
