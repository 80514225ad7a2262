"""Progress of a round: a bar where a terminal watches, log lines where none does."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flower_split.training.loop import StepReport

log = logging.getLogger(__name__)

LINES = 5
"""Log lines of a round, about."""


@contextmanager
def show_progress(
    label: str, steps: int, *, console: Console | None = None
) -> Iterator[Callable[[StepReport], None]]:
    """The `progress` argument of `train_round`, shown while the context is open.

    Args:
        label: What is going on, such as `round 2, silo 0`.
        steps: Optimizer steps of the round.
        console: Where to show it; None for standard error.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _log_lines(label, steps)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=steps, loss="-")
        yield lambda report: bar.update(task, completed=report.step, loss=f"{report.loss:.4f}")


def _log_lines(label: str, steps: int) -> Callable[[StepReport], None]:
    every = max(1, steps // LINES)

    def write(report: StepReport) -> None:
        if report.step % every == 0 or report.step == steps:
            log.info(
                "%s: step %d of %d, loss %.4f, learning rate %.3g",
                label,
                report.step,
                steps,
                report.loss,
                report.learning_rate,
            )

    return write
