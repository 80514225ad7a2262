"""What a silo costs the trunk: its adapter, its optimizer's state, its activations in flight."""

import gc
from collections.abc import Callable

import pytest
import torch
from asking import Asking
from several_silos import make_trunk, open_silo
from tiny_models import CASES
from torch.profiler import ProfilerActivity, profile

from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest

SILOS, TOKENS = 32, 16
LLAMA = next(case for case in CASES if case.model_type == "llama")


def allocated(engine: TrunkEngine, work: Callable[[], object]) -> int:
    """Bytes that the trunk's thread allocates for `work` and does not free, autograd's among them.

    The profiler sees the thread in which it is started; so garbage is collected there alone.
    """
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    gc.collect()
    gc.disable()
    try:
        engine.queue.call(recorded.start).result()
        kept = work()
        engine.queue.call(gc.collect).result()
        engine.queue.call(recorded.stop).result()
    finally:
        gc.enable()
    del kept
    return sum(event.self_cpu_memory_usage for event in recorded.key_averages())


def adapter_bytes(engine: TrunkEngine) -> int:
    return sum(4 * tensor.numel() for tensor in engine.shared_state().values())


def ask(session: Asking, request: ForwardRequest | BackwardRequest) -> None:
    """Have a pass made, and its result freed in the thread that made it."""
    held = [session.submit(request)]
    held[0].result()
    session.engine.queue.call(held.clear).result()


def forward(session: Asking, engine: TrunkEngine, microbatch: int, step: int = 0) -> None:
    hidden = torch.ones(1, TOKENS, engine.trunk.hidden_size)
    request = ForwardRequest(
        step=step, microbatch=microbatch, hidden=hidden, keep_graph=True, dropout=False
    )
    ask(session, request)


def trained(engine: TrunkEngine, silo: int, *, in_flight: int = 0) -> Asking:
    """A session after one step, with microbatches of the next one in flight."""
    session = open_silo(engine, silo)
    forward(session, engine, 0)
    grad = torch.ones(1, TOKENS, engine.trunk.hidden_size)
    ask(session, BackwardRequest(step=0, microbatch=0, grad=grad))
    session.step(StepRequest(step=0, learning_rate=1e-3, norms_before=(), norms_after=()))
    for microbatch in range(1, in_flight + 1):
        forward(session, engine, microbatch, step=1)
    return session


@pytest.fixture
def engine() -> TrunkEngine:
    made = make_trunk(LLAMA.model("sdpa"), BatchSettings(batching=True, gather_ms=0.0))
    trained(made, 1).close()
    made.queue.join()  # one session that stays, so that the thread does too
    return made


@pytest.mark.exhaustive
def test_each_silo_adds_adapter_moments_and_microbatches_whatever_their_number(
    engine: TrunkEngine,
) -> None:
    open_ones = []

    def more(first: int, last: int, in_flight: int = 0) -> float:
        """Bytes that a silo adds, over those of its adapter."""
        added = allocated(
            engine,
            lambda: open_ones.extend(
                trained(engine, silo, in_flight=in_flight) for silo in range(first, last + 1)
            ),
        )
        return added / (last + 1 - first) / adapter_bytes(engine)

    alone, pipelined = more(2, 2), more(3, 3, in_flight=2)
    crowd, last = more(4, SILOS - 1), more(SILOS, SILOS, in_flight=2)
    assert alone == pytest.approx(3, rel=0.02)  # with AdamW's two moments
    assert crowd == pytest.approx(alone, rel=0.02)
    assert pipelined > alone
    assert last == pytest.approx(pipelined, rel=0.02)


@pytest.mark.slow
def test_a_session_that_is_closed_leaves_nothing(engine: TrunkEngine) -> None:
    def come_and_go() -> None:
        for silo in range(2, 5):
            trained(engine, silo, in_flight=2).close()

    assert abs(allocated(engine, come_and_go)) < 0.1 * adapter_bytes(engine)
