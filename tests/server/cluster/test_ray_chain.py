"""A trunk on Ray: what its sessions yield, where they are, and what a stage's end costs."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from asking import Asking, opened
from cut_training import tensor
from ray_trunks import SECONDS, gone, in_one_process, kill_stage, on_ray, ray_processes
from sessions_alike import same, start_of, yields
from tiny_checkpoint import save_tiny_model
from torch import Tensor
from unkind_silos import check_others_go_on

from flower_split.errors import SequenceError, TrunkBusyError, TrunkUnavailableError
from flower_split.server.stages.chain import Chain
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    StepRequest,
    Ticket,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def chain(folder: Path) -> Iterator[Chain[Any]]:
    """Two replicas of two stages."""
    with on_ray(folder, 2, 2) as chain:
        started = ray_processes()
        assert started
        yield chain
    assert gone(started)


_START: dict[str, Tensor] = {}
"""Read once, as the stages that are gone cannot be asked for the names."""


def _started(chain: Any) -> dict[str, Tensor]:
    if not _START:
        _START.update(start_of(chain))
    return _START


def begun(chain: Any, token: str) -> tuple[Asking, Any]:
    """A session that starts from the same adapter as all."""
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token=token)
    record = chain.prepare(ticket, TrunkStart(tensors=_started(chain)))
    return opened(chain, chain.describe(), ticket, record), record


def trained(session: Asking, record: Any) -> dict[str, Tensor]:
    """What a session makes of its adapter in two steps of two microbatches."""
    for step in range(2):
        work(session, step)
    session.finish()
    outcome = record.collect()
    assert outcome is not None
    return dict(outcome.tensors)


def work(session: Asking, step: int) -> None:
    for number in (2 * step, 2 * step + 1):
        session.forward(
            ForwardRequest(step=step, microbatch=number, hidden=tensor(number), keep_graph=True)
        )
    for number in (2 * step, 2 * step + 1):
        session.backward(BackwardRequest(step=step, microbatch=number, grad=tensor(number + 9)))
    session.step(StepRequest(step=step, learning_rate=0.01, norms_before=(0.25,)))


@pytest.mark.parametrize("over_grpc", [False, True])
@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_session_yields_what_one_process_yields(
    folder: Path, chain: Chain[Any], purpose: str, over_grpc: bool
) -> None:
    whole = yields(in_one_process(folder), "federated", purpose, over_grpc=over_grpc)
    parts = yields(chain, "federated", purpose, over_grpc=over_grpc)
    assert len(whole) == len(parts) > 5
    for number, (one, other) in enumerate(zip(whole, parts, strict=True)):
        assert same(one, other), number


def test_sessions_are_placed_on_the_replica_that_has_fewest(
    folder: Path, chain: Chain[Any]
) -> None:
    whole = in_one_process(folder)
    expected = trained(*begun(whole, "w"))
    sessions = [begun(chain, f"s{number}") for number in range(4)]
    assert chain.loads == (2, 2)
    for session, record in sessions[:2]:
        assert same(trained(session, record), expected)
    assert chain.loads == (1, 1)
    sessions[2][0].close()
    assert sorted(chain.loads) == [0, 1]
    assert same(trained(*sessions[3]), expected)
    assert chain.loads == (0, 0)


def test_a_stage_that_ends_costs_the_sessions_of_its_replica_and_comes_back(
    folder: Path, chain: Chain[Any]
) -> None:
    expected = trained(*begun(in_one_process(folder), "w"))
    lost, other = (begun(chain, f"d{number}") for number in range(2))
    work(lost[0], 0)
    kill_stage(chain, 0, 1)
    began = time.monotonic()
    with pytest.raises(TrunkUnavailableError, match=r"stage of layers 2 to 2 has ended|is lost"):
        work(lost[0], 1)
    assert time.monotonic() - began < 30.0
    assert lost[1].collect() is None
    assert same(trained(*other), expected)
    lost[0].close()
    with pytest.raises(SequenceError):
        lost[0].forward(ForwardRequest(step=1, microbatch=9, hidden=tensor(0)))
    # The replica that is whole takes what comes meanwhile.
    assert same(trained(*begun(chain, "d2")), expected)
    chain.replicas[0][1].come_back(SECONDS)
    both = [begun(chain, f"e{number}") for number in range(2)]
    assert chain.loads == (1, 1)
    for session, record in both:
        assert same(trained(session, record), expected)


def test_a_session_that_is_closed_answers_all_that_is_under_way(chain: Chain[Any]) -> None:
    session, _ = begun(chain, "c")
    asked = [
        session.session.submit(
            ForwardRequest(step=0, microbatch=number, hidden=tensor(number), keep_graph=True)
        )
        for number in range(4)
    ]
    session.close()
    kinds = {type(one.exception(SECONDS)) for one in asked}
    assert kinds <= {type(None), SequenceError, TrunkUnavailableError}
    assert chain.loads == (0, 0)
    again, record = begun(chain, "c2")
    assert trained(again, record)


def test_a_silo_that_never_reads_and_vanishes_costs_no_other_one_anything(
    folder: Path, chain: Chain[Any]
) -> None:
    expected = yields(in_one_process(folder), "federated", "train")
    check_others_go_on(chain, expected)


def test_no_other_machine_reaches_a_cluster_of_the_runs_own(chain: Chain[Any]) -> None:
    pid = chain.replicas[0][0].load(SECONDS).pid
    assert pid in {process.pid for process in ray_processes()}
    listening = [
        (process.name(), connection.laddr.ip)
        for process in ray_processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    for name, address in listening:
        assert address.removeprefix("::ffff:") in ("127.0.0.1", "::1"), (name, address)


def test_what_a_first_stage_refuses_reaches_the_silo_through_the_others(
    chain: Chain[Any],
) -> None:
    session, _ = begun(chain, "b")
    most = chain.limits.max_in_flight
    for number in range(most):
        session.forward(
            ForwardRequest(step=0, microbatch=number, hidden=tensor(number), keep_graph=True)
        )
    last = ForwardRequest(step=0, microbatch=most, hidden=tensor(most), keep_graph=True)
    with pytest.raises(TrunkBusyError, match="wait for their backward pass"):
        session.forward(last)
    session.release(0)
    assert session.forward(last).shape == last.hidden.shape
    for number in range(1, most + 1):
        session.backward(BackwardRequest(step=0, microbatch=number, grad=tensor(9)))
    session.step(StepRequest(step=0, learning_rate=0.01))
    assert session.finish().forwards == most + 1


def test_what_a_stage_refuses_is_said_in_its_own_words(chain: Chain[Any]) -> None:
    session, _ = begun(chain, "r")
    session.forward(ForwardRequest(step=0, microbatch=0, hidden=tensor(0), keep_graph=True))
    bad = torch.full_like(tensor(0), float("inf"))
    session.backward(BackwardRequest(step=0, microbatch=0, grad=bad))
    with pytest.raises(Exception, match="gradient norm number") as raised:
        session.step(StepRequest(step=0, learning_rate=0.01))
    assert "Traceback" not in str(raised.value) and "ray" not in str(raised.value).lower()
    session.close()
