"""Rows 1 and 2: silos that are killed at the worst moment."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
from hosting import eventually
from started_processes import line, running
from watched_trunk import FREED_SECONDS, VICTIM, WatchedTrunk, withstood

pytestmark = pytest.mark.slow

SILO = """
import json, sys
import torch
from raw_silo import RawSilo
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.messages import ForwardRequest, SessionSpec, Ticket
from flower_split.transport.rules import HopRules

address, upload, ticket, adapter, fields = sys.argv[1], *map(json.loads, sys.argv[2:])
spec = SessionSpec(**fields, adapter=adapter)
silo = RawSilo(address)
silo.send(hello_frame(spec, Ticket(**ticket)))
silo.read()
hidden = torch.ones(*upload, 32)
request = ForwardRequest(step=0, microbatch=0, hidden=hidden, keep_graph=True)
frames = list(encode_request(request, HopRules(spec)).frames())
silo.send(*(frames[:-1] or frames))
if len(frames) == 1:
    silo.read()  # the graph is kept
print(len(frames), flush=True)
sys.stdin.read()
"""


@contextmanager
def silo(trunk: WatchedTrunk, rows: int, tokens: int) -> Iterator["subprocess.Popen[str]"]:
    """A silo's process that waits to be killed, amid its upload where that is of several frames."""
    invited = trunk.invite(VICTIM)
    described = trunk.engine.describe()
    names = ("purpose", "fingerprint", "num_layers", "bottom_layers", "top_layers", "dtype")
    fields = {name: getattr(described, name) for name in (*names, "trunk_adapters")}
    arguments = [[rows, tokens], asdict(invited.ticket), described.adapter, fields]
    with running(SILO, trunk.server.address, *map(json.dumps, arguments)) as process:
        yield process
    assert invited.record.collect() is None


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_row_01_a_silo_that_is_killed_or_frozen_amid_its_upload(
    trunk: WatchedTrunk, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is computed, and its place is free again; a round without it is row 32's."""
    computed: list[int] = []
    hook = trunk.engine.trunk.register_forward_hook(lambda *made: computed.append(len(made[-1])))
    try:
        with withstood(trunk, caplog), silo(trunk, 128, 128) as process:
            assert line(process) == "2"
            assert trunk.server.num_sessions == 2
            process.send_signal(how)
            assert eventually(lambda: trunk.server.num_sessions == 1, FREED_SECONDS)
            assert 128 not in computed
    finally:
        hook.remove()


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_row_02_a_silo_that_is_killed_or_frozen_between_forward_and_backward(
    trunk: WatchedTrunk, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """The graph that waits for its backward pass goes with the session, which I4 looks for."""
    with withstood(trunk, caplog), silo(trunk, 4, 16) as process:
        assert line(process) == "1"
        assert trunk.kept
        process.send_signal(how)
        assert eventually(lambda: trunk.server.num_sessions == 1, FREED_SECONDS)
