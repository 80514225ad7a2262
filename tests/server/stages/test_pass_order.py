"""The order of passes: one at a time, as they can be computed, and no failure holds others up."""

from concurrent.futures import Future
from typing import Any

import pytest

from flower_split.server.stages.futures import done, failed, gathered, running
from flower_split.server.stages.pass_order import PassOrder


def test_what_is_ready_does_not_wait_for_what_is_not() -> None:
    order, begun = PassOrder(), list[str]()
    late = running()
    answers = {
        name: order.add(given, lambda value: begun.append(value) or done(value))  # type: ignore[func-returns-value]
        for name, given in (("backward", late), ("forward", done("forward")))
    }
    assert begun == ["forward"] and not answers["backward"].done()
    late.set_result("backward")
    assert begun == ["forward", "backward"]


def test_one_pass_is_computed_at_a_time() -> None:
    order, computing = PassOrder(), list[Future[Any]]()

    def start(value: int) -> Future[Any]:
        computing.append(running())
        return computing[-1]

    answers = [order.add(done(number), start) for number in range(3)]
    for number in range(3):
        assert len(computing) == number + 1
        computing[number].set_result(number)
        assert answers[number].result(0) == number


def test_a_failure_is_that_pass_alone() -> None:
    order = PassOrder()

    def refuse(value: int) -> Future[Any]:
        raise ValueError("refused")

    answers = [
        order.add(failed(KeyError("upstream")), done),
        order.add(done(1), refuse),
        order.add(done(2), lambda value: failed(TypeError("computing"))),
        order.add(done(3), done),
    ]
    kinds = [type(answer.exception(0)) for answer in answers]
    assert kinds == [KeyError, ValueError, TypeError, type(None)]


def test_many_that_are_computed_at_once_need_no_deep_stack() -> None:
    order, gate = PassOrder(), running()
    answers = [order.add(gate, done) for _ in range(5000)]
    gate.set_result(7)
    assert gathered(answers).result(0) == [7] * 5000


def test_no_waiter_cancels_what_others_wait_for() -> None:
    with pytest.raises(KeyError):
        gathered([done(1), failed(KeyError("one"))]).result(0)
    assert gathered([]).result(0) == []
    assert not running().cancel()
