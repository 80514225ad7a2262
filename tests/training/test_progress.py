"""Progress: a bar where a terminal watches, log lines where none does."""

import io
import logging

import pytest
from rich.console import Console

from flower_split.training import StepReport, show_progress


def report(step: int, steps: int) -> StepReport:
    return StepReport(step=step, steps=steps, loss=1.25, learning_rate=1e-3)


def run(steps: int, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with show_progress("round 2, silo 0", steps, console=console) as progress:
        for step in range(1, steps + 1):
            progress(report(step, steps))
    return out.getvalue()


def test_a_terminal_shows_a_bar(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        out = run(3, terminal=True)
    assert "round 2, silo 0" in out and "3/3" in out and "1.2500" in out
    assert caplog.text == ""


@pytest.mark.parametrize("steps", [1, 3, 99, 1000])
def test_anything_else_gets_a_few_lines(caplog: pytest.LogCaptureFixture, steps: int) -> None:
    with caplog.at_level(logging.INFO):
        assert run(steps, terminal=False) == ""
    assert 1 <= len(caplog.messages) <= 7
    assert caplog.messages[-1] == (
        f"round 2, silo 0: step {steps} of {steps}, loss 1.2500, learning rate 0.001"
    )
