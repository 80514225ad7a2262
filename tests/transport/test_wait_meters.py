"""Waiting for the trunk is counted, however the trunk is called, and nothing else is."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from pairs import make_batch, make_pair

from flower_split.config.sections import TrainConfig
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk
from flower_split.training import evaluate, train_round
from flower_split.transport.meters import WaitMeter

PAUSE = 0.05


class _Slow(Future[Any]):
    """An answer that is there, and takes its time to be fetched."""

    def result(self, timeout: float | None = None) -> Any:
        time.sleep(PAUSE)
        return super().result(timeout)


def test_a_block_is_counted_also_where_it_fails() -> None:
    meter = WaitMeter()
    with pytest.raises(ValueError, match="gone"), meter.waiting():
        time.sleep(PAUSE)
        raise ValueError("gone")
    assert meter.seconds >= PAUSE
    meter.add(1.0)
    assert meter.seconds >= 1 + PAUSE


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client model whose trunk answers in this process, each answer a pause late."""
    pair = make_pair()
    transport = pair.transport

    def late(ask: Callable[[Any], Future[Any]]) -> Callable[[Any], Future[Any]]:
        def asked(request: Any) -> Future[Any]:
            future = _Slow()
            future.set_result(ask(request).result())
            return future

        return asked

    for name in ("forward", "backward", "step"):
        monkeypatch.setattr(transport, name, late(getattr(transport, name)))
    attach_trunk(pair.client, transport)
    return pair


@pytest.mark.medium
def test_a_plain_loop_s_waits_are_counted(slow: Any) -> None:
    began = time.perf_counter()
    optimizer = SplitAdamW(slow.client, lr=1e-3)
    slow.client(**make_batch()).loss.backward()
    optimizer.step()
    with torch.no_grad():
        slow.client(**make_batch())
    forward_backward_step_forward = 4
    waited = slow.transport.waits.seconds
    assert forward_backward_step_forward * PAUSE <= waited < time.perf_counter() - began


@pytest.mark.medium
def test_the_pipeline_s_waits_are_counted(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are there at once, so that what is left is the step's."""
    stages = SplitStages(slow.client)
    optimizer = SplitAdamW(slow.client, lr=0.0)
    metrics = train_round(slow.client, optimizer, [make_batch()], TrainConfig(), stages=stages)
    assert metrics.waited < PAUSE <= slow.transport.waits.seconds
    before = slow.transport.waits.seconds
    monkeypatch.setattr("flower_split.training.evaluation.run_pipeline", lambda *_: 7.0)
    with pytest.raises(Exception, match="no target token"):
        evaluate(slow.client, [make_batch()], stages=stages)
    assert slow.transport.waits.seconds == before + 7.0
