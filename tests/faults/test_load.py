"""Rows 10, 11 and 26: floods of streams, streams that say nothing, and memory that runs out."""

from typing import Any

import grpc
import pytest
import torch
from hosting import eventually
from raw_http2 import REFUSED, Streams
from watched_trunk import VICTIM, WatchedTrunk, watched_trunk, withstood

from flower_split.errors import TrunkBusyError
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.messages import BackwardRequest, ForwardRequest

SESSION = "/flower_split.v1.Trunk/Session"
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
GONE = grpc.StatusCode.UNAVAILABLE.value[0]
MANY = [300, pytest.param(10_000, marks=pytest.mark.exhaustive)]


@pytest.mark.medium
@pytest.mark.parametrize("streams", MANY)
def test_row_10_streams_that_are_opened_and_cancelled_at_once(
    trunk: WatchedTrunk, streams: int, caplog: pytest.LogCaptureFixture
) -> None:
    """On one connection, faster than any could be served; a silo gets its session all the same."""
    with withstood(trunk, caplog) as fault:
        with Streams(trunk.server.address, SESSION) as flood:
            flood.open(streams, reset=True)
            assert trunk.healthy()
            assert fault.attempt(trunk.invite(VICTIM)) is not None
        assert eventually(lambda: trunk.server.num_sessions == 1)  # the neighbour's


@pytest.mark.medium
def test_row_10_more_sessions_than_there_is_room_for(caplog: pytest.LogCaptureFixture) -> None:
    """The refusal says what to do, and the ticket stays good for it."""
    with watched_trunk(limits=ServiceLimits(max_sessions=2)) as trunk:
        with withstood(trunk, caplog) as fault, trunk.connect(trunk.invite(9)):
            waiting = trunk.invite(VICTIM)
            error = fault.refused(lambda: trunk.connect(waiting), TrunkBusyError)
            assert "Try later, or raise trunk.max-sessions" in str(error)
        assert fault.attempt(waiting) is not None


@pytest.mark.medium
@pytest.mark.parametrize("streams", MANY)
def test_row_11_streams_that_say_nothing(
    streams: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those beyond the bound are refused at once, the others when no hello has come in time."""
    monkeypatch.setattr("flower_split.server.grpc.service._HELLO_SECONDS", 1.0)
    limits = ServiceLimits(max_sessions=2, max_deliveries=1)
    with (
        watched_trunk(limits=limits) as trunk,
        withstood(trunk, caplog) as fault,
        Streams(trunk.server.address, SESSION) as mute,
    ):
        mute.open(streams)
        assert trunk.healthy()
        ended = mute.endings(streams)
        assert ended.keys() <= {FULL, GONE, REFUSED}, ended
        assert 0 < ended[GONE] <= 2 * limits.max_sessions + limits.max_deliveries + 16
        assert ended[FULL] > 0 and ended[REFUSED] > 0
        assert fault.attempt(trunk.invite(VICTIM)) is not None


@pytest.mark.medium
def test_row_11_sessions_that_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each ends by the idle timeout, and a node has one at a time: a new token revokes its last."""
    limits = ServiceLimits(idle_timeout=3.0)
    with watched_trunk(limits=limits) as trunk, withstood(trunk, caplog):
        idle = [trunk.connect(trunk.invite(node)) for node in range(20, 30)]
        again = trunk.connect(trunk.invite(20))
        assert eventually(lambda: trunk.server.num_sessions <= len(idle) + 1)
        assert eventually(lambda: trunk.server.num_sessions == 1)
        for transport in (*idle, again):
            transport.close()


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("as CUDA says it")


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("amid", ["forward", "backward"])
def test_row_26_memory_that_runs_out_for_a_legal_batch(
    trunk: WatchedTrunk, amid: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Injected where the device would raise it; only the session whose batch it was ends."""

    def inject(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if len(output) == 3:  # nobody else sends three rows
            if amid == "forward":
                out_of_memory()
            output.register_hook(out_of_memory)

    hidden = torch.ones(3, 5, trunk.engine.trunk.hidden_size)
    hook = trunk.engine.trunk.register_forward_hook(inject)

    def passes() -> None:
        invited = trunk.invite(VICTIM)
        with trunk.connect(invited) as transport:
            asked = ForwardRequest(step=0, microbatch=0, hidden=hidden, keep_graph=True)
            transport.forward(asked).result(20)
            transport.backward(BackwardRequest(step=0, microbatch=0, grad=hidden)).result(20)

    try:
        with withstood(trunk, caplog) as fault:
            error = fault.refused(passes, TrunkBusyError)
            cause = error.__cause__
            assert isinstance(cause, grpc.Call)
            assert cause.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert fault.attempt(trunk.invite(VICTIM)) is not None
    finally:
        hook.remove()


@pytest.mark.medium
def test_row_26_a_batch_beyond_the_bound_is_refused_before_it_is_computed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        watched_trunk(batching=BatchSettings(max_memory=0.001)) as trunk,
        withstood(trunk, caplog) as fault,
    ):
        computed: list[int] = []
        trunk.engine.trunk.register_forward_hook(lambda *made: computed.append(len(made[-1])))

        def large() -> None:
            with trunk.connect(trunk.invite(VICTIM)) as transport:
                hidden = torch.ones(60, 64, trunk.engine.trunk.hidden_size)
                request = ForwardRequest(step=0, microbatch=0, hidden=hidden)
                transport.forward(request).result(20)

        error = fault.refused(large, TrunkBusyError)
        assert "trunk.max-memory" in str(error)
        assert 60 not in computed
