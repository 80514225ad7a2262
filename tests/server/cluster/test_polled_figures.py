"""Figures of stages elsewhere: as told last, and kept over a stage that is made anew."""

from concurrent.futures import Future
from typing import Any

import pytest

from flower_split.server.cluster import polled_figures
from flower_split.server.cluster.polled_figures import PolledFigures
from flower_split.server.cluster.stage_job import StageFigures
from flower_split.server.compute.queue import Computed


class Actor:
    """What Ray's handle is to the figures; answers when it is told to."""

    def __init__(self) -> None:
        self.figures = self
        self.asked: list[Future[StageFigures]] = []

    def remote(self) -> "Actor":
        return self

    def future(self) -> Future[StageFigures]:
        self.asked.append(Future())
        return self.asked[-1]


def told(name: str, waiting: int, tokens: int) -> StageFigures:
    computed = Computed(passes=1, tokens=tokens, seconds=0.5)
    return StageFigures(name=name, waiting=waiting, computed=computed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(polled_figures.time, "monotonic", lambda: now[0])
    return now


def test_who_looks_has_what_was_told_last_and_waits_for_nothing(clock: list[float]) -> None:
    actor: Any = Actor()
    figures = PolledFigures(actor)
    assert (figures.waiting, figures.computed) == (0, Computed())
    assert len(actor.asked) == 1
    actor.asked[0].set_result(told("a", 3, 40))
    assert (figures.waiting, figures.computed.tokens) == (3, 40)
    assert len(actor.asked) == 1
    clock[0] += polled_figures.SECONDS
    assert figures.waiting == 3 and len(actor.asked) == 2
    clock[0] += polled_figures.SECONDS
    assert figures.waiting == 3 and len(actor.asked) == 2, "it is being asked"


def test_what_a_stage_had_computed_that_is_gone_counts(clock: list[float]) -> None:
    actor: Any = Actor()
    figures = PolledFigures(actor)
    answers: list[StageFigures | Exception] = [
        told("a", 3, 40),
        RuntimeError("gone"),
        told("b", 1, 5),
    ]
    seen = []
    for answer in answers:
        assert figures.waiting >= 0  # has it asked
        if isinstance(answer, Exception):
            actor.asked[-1].set_exception(answer)
        else:
            actor.asked[-1].set_result(answer)
        seen.append((figures.waiting, figures.computed.tokens))
        clock[0] += polled_figures.SECONDS
    assert seen == [(3, 40), (0, 40), (1, 45)]


def test_a_question_that_is_never_answered_is_asked_again(clock: list[float]) -> None:
    actor: Any = Actor()
    figures = PolledFigures(actor)
    assert figures.waiting == 0
    clock[0] += polled_figures.LOST_SECONDS
    assert figures.waiting == 0
    assert len(actor.asked) == 2
