"""Silos that ask and never read, or vanish in the middle, beside one that does neither."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cut_training import HIDDEN
from hosting import eventually, hosting
from raw_silo import RawSilo
from sessions_alike import same, yields

from flower_split.server.stages.chain import Chain
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.messages import ForwardRequest
from flower_split.transport.rules import HopRules

ASKED = 400
"""Passes that a silo asks for without reading an answer."""
ROWS = 64
"""Of each, 96 tokens a row, so that connections cannot hold all answers."""


@contextmanager
def never_reading(chain: Chain[Any], address: str) -> Iterator[RawSilo]:
    """A silo that has asked for `ASKED` passes, and reads nothing."""
    spec = chain.describe()
    with RawSilo(address) as silo:
        silo.send(hello_frame(spec, None))
        rules = HopRules(spec)
        for number in range(ASKED):
            hidden = torch.ones(ROWS, 96, HIDDEN)
            request = ForwardRequest(step=0, microbatch=number, hidden=hidden)
            silo.send(*encode_request(request, rules).frames())
        yield silo


def check_others_go_on(chain: Chain[Any], expected: list[Any]) -> None:
    """Fail unless a silo yields `expected` beside one that never reads, of which little is kept,
    and which then vanishes with what it has asked for."""
    with hosting(chain) as server:
        before = chain.computed.passes
        with never_reading(chain, server.address):
            assert eventually(lambda: chain.computed.passes > before, 60.0)
            assert all(map(same, yields(chain, "federated", "train"), expected))
            after = -1
            while after != chain.computed.passes:  # it stands still, as nobody reads
                after = chain.computed.passes
                time.sleep(1.5)
            assert after - before < ASKED, "everything was computed, and is kept for a silo"
            assert sum(chain.loads) == 1
        assert eventually(lambda: not sum(chain.loads), 30.0)
        assert eventually(lambda: not chain.waiting, 30.0)
        assert all(map(same, yields(chain, "federated", "train"), expected))
