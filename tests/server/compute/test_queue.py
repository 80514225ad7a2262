"""The trunk's queue: silos that share batches stay strangers to each other."""

import gc
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from asking import Asking
from hosting import eventually, hosting
from several_silos import (
    TOGETHER,
    complete,
    furthest,
    gradients_of,
    make_trunk,
    open_silo,
    passes,
    submitted,
)
from tiny_models import tiny_model
from torch import Tensor

from flower_split import GrpcTransport, LocalTransport
from flower_split.config.sections import LoraSettings
from flower_split.errors import SequenceError, TrunkBusyError, WireError
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.compute.scheduler import Scheduler
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest

WIDTH = 32
TOLERANCE = 2e-5
AT_ONCE = replace(TOGETHER, gather_ms=0.0)


def normal(seed: int, rows: int = 1, tokens: int = 6) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def ask(seed: int, microbatch: int = 0, **changes: object) -> ForwardRequest:
    fields: dict[str, object] = {"hidden": normal(seed), "keep_graph": True, **changes}
    return ForwardRequest(step=0, microbatch=microbatch, **fields)  # type: ignore[arg-type]


def grad(seed: int, microbatch: int = 0, **changes: object) -> BackwardRequest:
    fields: dict[str, object] = {"grad": normal(1000 + seed), **changes}
    return BackwardRequest(step=0, microbatch=microbatch, **fields)  # type: ignore[arg-type]


def silos(batching: BatchSettings | None, count: int) -> list[Asking]:
    engine = make_trunk(tiny_model(layers=3), batching)
    return [open_silo(engine, seed) for seed in range(count)]


@lru_cache
def lonely(seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """h2, g1 and gradients of a silo that has the trunk for itself."""
    (silo,) = [open_silo(make_trunk(tiny_model(layers=3), None), seed)]
    (made,) = passes([silo], [ask(seed)], [normal(1000 + seed)])
    return made.h2, made.g1, made.gradients


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def assert_as_alone(session: Asking, seed: int, g1: Tensor) -> None:
    _, expected, gradients = lonely(seed)
    assert_close(g1, expected)
    for got, wanted in zip(gradients_of(session), gradients, strict=True):
        assert_close(got, wanted)


def forward_together(sessions: list[Asking]) -> list[Tensor]:
    return complete(submitted(sessions, [ask(seed) for seed in range(len(sessions))]))


@pytest.mark.medium
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1], [0], [2, 3]])
def test_late_silos_have_their_rows_computed_anew(order: list[int]) -> None:
    sessions = silos(AT_ONCE, 4)
    forward_together(sessions)
    budget = sessions[0].engine.queue.budget
    for place, seed in enumerate(order):
        (g1,) = complete([sessions[seed].submit(grad(seed))])
        assert_as_alone(sessions[seed], seed, g1)
        # The graph of four rows is not kept for a single one.
        assert budget.kept == (24 if place + 1 <= 2 else 0)
    for session in sessions:
        session.close()
    assert budget.kept == 0


@pytest.mark.medium
def test_most_of_a_batch_goes_through_its_graph_and_the_rest_comes_later() -> None:
    sessions = silos(AT_ONCE, 4)
    forward_together(sessions)
    late = (3, 1, 0)
    futures = submitted([sessions[seed] for seed in late], [grad(seed) for seed in late])
    for seed, g1 in zip((3, 1, 0), complete(futures), strict=True):
        assert_as_alone(sessions[seed], seed, g1)
    assert sessions[0].engine.queue.budget.kept == 0
    (g1,) = complete([sessions[2].submit(grad(2))])
    assert_as_alone(sessions[2], 2, g1)


def test_a_silo_sees_nothing_of_the_data_beside_its_own() -> None:
    results = []
    for other in (7, 8):
        sessions = silos(TOGETHER, 2)
        futures = submitted(sessions, [ask(0), ask(other)])
        h2 = complete(futures)[0]
        back = submitted(sessions, [grad(0), grad(other)])
        g1 = complete(back)[0]
        results.append([h2, g1, *gradients_of(sessions[0])])
        assert sessions[0].summary.queue.rows_beside == 2
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_values_that_are_not_finite_stay_with_the_silo_that_sent_them() -> None:
    sessions = silos(TOGETHER, 3)
    bad = ask(1, hidden=torch.full((1, 6, WIDTH), float("nan")))
    requests = [ask(0), bad, ask(2)]
    outputs = complete(submitted(sessions, requests))
    assert outputs[1].isnan().all()
    back = submitted(sessions, [grad(seed) for seed in range(len(sessions))])
    for seed, g1 in enumerate(complete(back)):
        if seed != 1:
            assert_as_alone(sessions[seed], seed, g1)
    assert sessions[0].summary.queue.rows_beside == 4


def test_a_refused_request_does_not_touch_the_batch() -> None:
    sessions = silos(TOGETHER, 3)
    futures = submitted([sessions[0], sessions[2]], [ask(0), ask(2)])
    with pytest.raises(WireError, match="h1: hidden size"):
        sessions[1].forward(ask(1, hidden=torch.zeros(1, 6, WIDTH + 1)))
    with pytest.raises(SequenceError, match="no activations"):
        sessions[1].backward(grad(1))
    complete(futures)
    with pytest.raises(WireError, match="g2 is"):
        sessions[0].backward(grad(0, grad=torch.zeros(1, 5, WIDTH)))
    back = submitted([sessions[0], sessions[2]], [grad(0), grad(2)])
    for seed, g1 in zip((0, 2), complete(back), strict=True):
        assert_as_alone(sessions[seed], seed, g1)


def test_a_fault_while_computing_is_only_that_silos(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = silos(TOGETHER, 3)
    trunk = sessions[0].engine.trunk
    compute = trunk.forward

    def faulty(hidden, **options):  # type: ignore[no-untyped-def]
        if (hidden == 7).any():
            raise torch.OutOfMemoryError("too much")
        return compute(hidden, **options)

    monkeypatch.setattr(trunk, "forward", faulty)
    too_much = ask(1, hidden=torch.full((1, 6, WIDTH), 7.0))
    futures = submitted(sessions, [ask(0), too_much, ask(2)])
    assert isinstance(futures[1].exception(60), TrunkBusyError)
    for seed in (0, 2):
        assert_close(futures[seed].result(60), lonely(seed)[0])
        (g1,) = complete([sessions[seed].submit(grad(seed))])
        assert_as_alone(sessions[seed], seed, g1)


def test_a_silo_that_closes_while_it_waits_leaves_the_others_alone() -> None:
    sessions = silos(TOGETHER, 3)
    with sessions[0].engine.queue.exclusive():
        futures = [session.submit(ask(seed)) for seed, session in enumerate(sessions)]
        closing = sessions[1].session.close()
    closing.result(60)
    with pytest.raises(SequenceError, match="ended"):
        futures[1].result(0)
    complete([futures[0], futures[2]])
    sessions[2].close()  # with activations of its rows in the common graph
    (g1,) = complete([sessions[0].submit(grad(0))])
    assert_as_alone(sessions[0], 0, g1)
    assert sessions[0].engine.queue.budget.kept == 0


def test_a_future_that_nobody_wants_any_more_is_not_computed() -> None:
    sessions = silos(TOGETHER, 2)
    with sessions[0].engine.queue.exclusive():
        futures = [session.submit(ask(seed)) for seed, session in enumerate(sessions)]
        assert futures[0].cancel()
    complete(futures[1:])
    assert sessions[0].finish().forwards == 0


@pytest.mark.medium
def test_activations_are_freed_with_the_last_of_their_rows() -> None:
    sessions = silos(TOGETHER, 2)
    outputs: list[weakref.ref[Tensor]] = []
    engine = sessions[0].engine
    engine.trunk.register_forward_hook(lambda *made: outputs.append(weakref.ref(made[-1])))
    forward_together(sessions)
    (output,) = outputs
    assert output() is not None
    complete(submitted(sessions, [grad(seed) for seed in range(len(sessions))]))
    gc.collect()
    assert output() is None
    assert engine.queue.budget.kept == 0


def test_silos_are_expected_until_the_last_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: dict[Any, frozenset[int]] = {}
    expect = Scheduler.expect

    def noting(self: Scheduler, mix: Any, sessions: Iterable[int]) -> None:
        expected[mix] = frozenset(sessions)
        expect(self, mix, expected[mix])

    monkeypatch.setattr(Scheduler, "expect", noting)
    sessions = silos(TOGETHER, 2)
    forward_together(sessions)
    assert [len(waited_for) for waited_for in expected.values()] == [2]
    complete(submitted(sessions, [grad(seed) for seed in range(len(sessions))]))
    assert list(expected.values()) == [frozenset()]


@pytest.mark.medium
@pytest.mark.parametrize("batching", [False, True])
def test_recomputing_keeps_nothing_and_changes_nothing(batching: bool) -> None:
    settings = replace(TOGETHER, batching=batching)
    requests = [ask(seed, hidden=normal(seed, 2, 5 + seed)) for seed in range(3)]
    grads = [normal(1000 + seed, 2, 5 + seed) for seed in range(3)]
    kept, anew = (
        passes(silos(replace(settings, recompute=recompute), 3), requests, grads)
        for recompute in (False, True)
    )
    apart = max(map(furthest, kept, anew))
    assert apart == 0.0
    sessions = silos(replace(settings, recompute=True), 2)
    forward_together(sessions)
    assert sessions[0].engine.queue.budget.kept == 0


def test_recomputing_draws_the_same_dropout_again() -> None:
    made = []
    for recompute in (False, True):
        settings = replace(TOGETHER, recompute=recompute)
        engine = make_trunk(
            tiny_model(layers=3), settings, lora=LoraSettings(r=3, alpha=6.0, dropout=0.5)
        )
        sessions = [open_silo(engine, seed) for seed in range(2)]
        requests = [ask(seed, dropout=True) for seed in range(2)]
        made.append(passes(sessions, requests, [normal(9), normal(10)]))
        assert sessions[0].summary.queue.rows_beside == 0  # random numbers are a silo's own
    assert max(map(furthest, *made)) == 0.0


def test_one_silo_that_alone_exceeds_the_bound_is_refused() -> None:
    (silo,) = silos(replace(TOGETHER, max_activation_tokens=16), 1)
    with pytest.raises(TrunkBusyError, match=r"trunk\.max-activation-tokens"):
        silo.forward(ask(0, hidden=normal(0, 3, 6)))
    silo.forward(ask(0, 0))
    silo.forward(ask(0, 1))
    with pytest.raises(TrunkBusyError, match=r"trunk\.max-activation-tokens"):
        silo.forward(ask(0, 2))
    silo.backward(grad(0, 0))
    silo.forward(ask(0, 2))


def test_a_silo_waits_for_room_until_another_has_freed_it() -> None:
    sessions = silos(replace(TOGETHER, batching=False, max_activation_tokens=6), 2)
    sessions[0].forward(ask(0))
    future = sessions[1].submit(ask(1))
    with pytest.raises(TimeoutError):
        future.result(0.2)
    g1 = sessions[0].backward(grad(0))
    assert g1 is not None
    assert_as_alone(sessions[0], 0, g1)
    complete([future])
    assert sessions[0].engine.queue.budget.kept == 6


@pytest.mark.medium
def test_more_in_flight_than_there_is_room_for_ends_well() -> None:
    """Eight silos fill a room for two with three microbatches each before any backward pass."""
    sessions = silos(replace(AT_ONCE, max_activation_tokens=18), 8)
    budget = sessions[0].engine.queue.budget
    with ThreadPoolExecutor(8) as pool:

        def silo(seed: int) -> None:
            for microbatch in range(3):
                sessions[seed].forward(ask(seed, microbatch))
                assert budget.kept <= 18
            for microbatch in range(3):
                g1 = sessions[seed].backward(grad(seed, microbatch))
                assert g1 is not None and g1.shape == (1, 6, WIDTH)

        list(pool.map(silo, range(8)))
    assert budget.kept == 0
    _, _, gradients = lonely(5)
    for got, wanted in zip(gradients_of(sessions[5]), gradients, strict=True):
        assert_close(got, 3 * wanted)


@pytest.mark.medium
def test_silos_over_grpc_share_batches() -> None:
    def train(settings: BatchSettings | None) -> list[int]:
        engine = make_trunk(tiny_model(layers=3), settings)
        start = threading.Barrier(4)
        with hosting(engine, health=False) as server, ThreadPoolExecutor(4) as pool:

            def silo(seed: int) -> int:
                with GrpcTransport(server.address, engine.describe()) as transport:
                    start.wait(60)
                    for step in range(3):
                        for number in (2 * step, 2 * step + 1):
                            h1 = normal(seed + 10 * number)
                            request = ForwardRequest(
                                step=step, microbatch=number, hidden=h1, keep_graph=True
                            )
                            h2 = transport.forward(request).result(60)
                            back = BackwardRequest(step=step, microbatch=number, grad=h2)
                            transport.backward(back).result(60)
                        transport.step(StepRequest(step=step, learning_rate=1e-3)).result(60)
                    queue = transport.finish().queue
                assert queue.rows == 12 and queue.seconds >= 0
                return queue.rows_beside

            return list(pool.map(silo, range(4)))

    assert sum(train(replace(TOGETHER, gather_ms=200.0))) > 0
    assert sum(train(None)) == 0


def compute_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "trunk-compute"]


def test_the_compute_thread_lives_as_long_as_a_session() -> None:
    before = len(compute_threads())
    sessions = silos(None, 2)
    engine = sessions[0].engine
    sessions[0].forward(ask(0))
    assert len(compute_threads()) == before + 1
    for session in sessions:
        session.close()
    assert eventually(lambda: len(compute_threads()) == before)
    (again,) = [open_silo(engine, 5)]
    again.forward(ask(5))
    again.close()
    assert eventually(lambda: len(compute_threads()) == before)


@pytest.mark.medium
def test_a_transport_that_is_forgotten_ends_its_session() -> None:
    before = len(compute_threads())
    engine = make_trunk(tiny_model(layers=3), None)
    transport = LocalTransport(engine)
    transport.forward(ask(0)).result()
    assert engine.queue.budget.kept == 6
    del transport
    gc.collect()
    assert eventually(lambda: engine.queue.budget.kept == 0)
    assert eventually(lambda: len(compute_threads()) == before)


@pytest.mark.medium
def test_the_number_of_threads_is_that_of_whoever_asks() -> None:
    (silo,) = silos(None, 1)
    used = []
    compute = silo.engine.trunk.forward

    def watched(hidden: Tensor, **options: Any) -> Tensor:
        used.append(torch.get_num_threads())
        return compute(hidden, **options)

    silo.engine.trunk.forward = watched  # type: ignore[method-assign]
    for microbatch, number in enumerate((1, 2, 1)):
        torch.set_num_threads(number)
        silo.forward(ask(0, microbatch))
    assert used == [1, 2, 1]


def test_a_backward_pass_out_of_a_backward_pass_is_made_by_its_caller() -> None:
    """As a silo in the trunk's own process makes it, which holds its device's autograd thread."""
    (silo,) = silos(None, 1)
    silo.forward(ask(0))
    threads = []
    parameter = next(p for p in silo.engine.trunk.parameters() if p.requires_grad)
    parameter.register_hook(lambda _: threads.append(threading.current_thread()))

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return silo.backward(grad(0))

    leaf = normal(0).requires_grad_()
    Cut.apply(leaf).sum().backward()  # type: ignore[no-untyped-call]
    assert_as_alone(silo, 0, leaf.grad)  # type: ignore[arg-type]
    assert set(threads) <= {threading.current_thread()}
