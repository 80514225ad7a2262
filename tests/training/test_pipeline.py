"""The order of the pipeline, with stages that only write down what they are asked."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.training.pipeline import run_pipeline


class Script:
    """Passages that write to `log`; the answers' times come from a list of choices."""

    def __init__(self, choices: Iterator[int] | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.abandoned: list[int] = []
        self._open: list[Future[None]] = []
        self._choices = choices

    def future(self) -> "Future[None]":
        found: Future[None] = Future()
        self._open.append(found)
        return found

    def answer(self) -> None:
        """Complete some of what is open, in any order; all of it where the choices ran out."""
        count = next(self._choices, len(self._open)) if self._choices else len(self._open)
        for _ in range(min(count, len(self._open))):
            at = next(self._choices, 0) if self._choices else 0
            self._open.pop(at % len(self._open)).set_result(None)

    def start(self, item: int) -> "Step":
        self.log.append(("F", item))
        return Step(self, item)

    def turn(self, item: int, step: "Step") -> None:
        self.log.append(("T", item))
        step.future = self.future()


class Step:
    def __init__(self, script: Script, item: int) -> None:
        self.script, self.item, self.future = script, item, script.future()

    @property
    def awaited(self) -> Any:
        if not self.future.done():
            self.script.answer()
        return self.future

    def finish(self) -> None:
        self.script.log.append(("B", self.item))

    def abandon(self) -> None:
        self.script.abandoned.append(self.item)


@given(
    count=st.integers(0, 9),
    depth=st.integers(1, 9),
    choices=st.lists(st.integers(0, 9), max_size=60),
)
def test_every_stage_takes_the_items_in_order(count: int, depth: int, choices: list[int]) -> None:
    script = Script(iter([1 + choice for choice in choices]))
    assert run_pipeline(range(count), depth, script.start, script.turn) >= 0.0
    for stage in "FTB":
        assert [item for name, item in script.log if name == stage] == list(range(count))
    inside = 0
    for name, _ in script.log:
        inside += {"F": 1, "T": 0, "B": -1}[name]
        assert inside <= depth
    assert not script.abandoned


def test_a_quick_trunk_is_kept_busy() -> None:
    script = Script()
    run_pipeline(range(3), 2, script.start, script.turn)
    assert [name + str(item) for name, item in script.log] == [
        *("F0", "F1", "T0", "B0", "F2", "T1", "T2", "B1", "B2")
    ]


def test_the_trunk_has_work_beside_the_last_backward_passes() -> None:
    script = Script()
    run_pipeline(range(5), 3, script.start, script.turn)
    assert [name + str(item) for name, item in script.log] == [
        *("F0", "F1", "F2", "T0", "B0", "F3", "T1", "B1", "F4", "T2", "T3", "T4", "B2", "B3", "B4")
    ]


def test_without_a_number_of_items_room_comes_first_to_the_end() -> None:
    script = Script()
    run_pipeline((item for item in range(3)), 3, script.start, script.turn)
    assert [name for name, _ in script.log] == list("FFFTBTBTB")


def test_items_are_taken_one_by_one() -> None:
    script, taken = Script(), list[int]()

    def items() -> Iterator[int]:
        for number in range(6):
            done = sum(name == "B" for name, _ in script.log)
            assert number - done < 2
            taken.append(number)
            yield number

    run_pipeline(items(), 2, script.start, script.turn)
    assert taken == list(range(6))


@pytest.mark.parametrize("stage", ["start", "turn", "finish"])
def test_an_error_abandons_what_is_on_its_way(stage: str) -> None:
    script = Script()

    def failing(name: str) -> Any:
        method = getattr(Step if name == "finish" else script, name)

        def call(*args: Any) -> Any:
            item = args[0].item if name == "finish" else args[0]
            if item == 2 and name == stage:
                raise KeyboardInterrupt
            return method(*args)

        return call

    step = type("Failing", (Step,), {"finish": failing("finish")})
    script.start = lambda item: step(script, item)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(range(6), 3, failing("start"), failing("turn"))
    assert script.abandoned
    assert set(script.abandoned) <= set(range(6))
    assert len(script.abandoned) <= 3
    assert (2 in script.abandoned) == (stage != "start")
