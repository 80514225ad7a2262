"""The record of a run: the files that are left of it, however it ends, and its result so far."""

import json
import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.supercore.exit import add_exit_handler

from flower_split.adapters import AdapterPlan, save_learned
from flower_split.apps.card import model_card
from flower_split.apps.privacy import statements
from flower_split.apps.prompt_format import FILE, prompt_format
from flower_split.apps.results import run_result
from flower_split.config.resuming import settings
from flower_split.config.sections import SplitConfig
from flower_split.errors import FlowerSplitError, StateError
from flower_split.reporting import RunResult, installed_versions, plot_losses, write_result
from flower_split.reporting.events import EventLog
from flower_split.reporting.model_card import CARD
from flower_split.reporting.report import REPORT, report_page
from flower_split.reporting.store import write_text
from flower_split.strategies import SplitStrategy
from flower_split.strategies.output import ADAPTER

logger = logging.getLogger(__name__)

RESULT, PLOT = "result.json", "losses.png"
"""Names in the output folder, beside `ADAPTER`."""

STOPPED = (
    "the ServerApp's process was told to end: by Ctrl-C, or because its SuperLink has ended or "
    "stopped the run"
)

_open_records: "weakref.WeakSet[RunRecord]" = weakref.WeakSet()


class RunRecord:
    """A context manager around a run; what the run has learned is saved when the block ends.

    A process that Flower ends by itself never reaches the block's end: there it is saved by
    Flower's exit handlers.

    Args:
        folder: Where the files go; None writes nothing.
        plan: Of the adapter that the run yields.
        config: The run's configuration.
        values: The run config as it was given.
        strategy: Runs the rounds.
        baseline: Runs the rounds in which every silo trains alone; None without them.
        events: Where the end of the run is told; None tells nobody.

    Raises:
        StateError: on leaving: the files cannot be written, and the run itself has not failed.
    """

    def __init__(
        self,
        folder: Path | None,
        plan: AdapterPlan,
        config: SplitConfig,
        values: Mapping[str, Any],
        strategy: SplitStrategy,
        baseline: SplitStrategy | None,
        *,
        events: EventLog | None = None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._config = config
        self._values = values
        self._strategy = strategy
        self._baseline = baseline
        self._events = events
        self._format = prompt_format(settings(config))
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._saved = False
        self._noted, self._note_seconds = 0.0, 0.0

    def __enter__(self) -> Self:
        _open_records.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.save("" if exc is None else _reason(exc))
        except OSError as error:
            if exc is None:
                raise StateError(self._unsaved(error)) from error
            logger.error("%s", self._unsaved(error))  # and the run ends with its own error
        finally:
            _open_records.discard(self)

    def note_round(self) -> None:
        """Write the result as it is after a round, in the state `running`.

        Where that takes long, as after very many silos' rounds, it is left out of rounds between,
        so that it costs no more than a hundredth of a run's time.
        """
        begun = time.monotonic()
        if self._folder is None or self._saved or begun < self._noted + 99 * self._note_seconds:
            return
        try:
            # Not under the lock, for which an exit handler in this thread would not wait.
            write_result(self._report(running=True), self._folder / RESULT)
        except OSError as error:
            logger.warning("%s is not written: %s", self._folder / RESULT, error.strerror)
        self._noted = time.monotonic()
        self._note_seconds = self._noted - begun

    def save(self, failure: str) -> None:
        """Write the files, unless that was done already.

        Args:
            failure: Why the run ended early; empty when it did not.
        """
        # An exit handler may interrupt the very thread that is saving.
        if self._folder is None or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._saved:
                self._write(self._folder, failure)
                self._saved = True
                self._tell_end(failure)
        finally:
            self._lock.release()

    def _unsaved(self, error: OSError) -> str:
        return (
            f"what the run has learned cannot be written to {self._folder}: {error.strerror}. "
            "The checkpoints that it has saved there are intact: make room, and resume it or "
            "export its adapter"
        )

    def _tell_end(self, failure: str) -> None:
        if self._events is not None:
            state = "failed" if failure else "completed"
            left = [ADAPTER] * bool(self._strategy.result.adapter) + [RESULT, PLOT, REPORT]
            seconds = time.monotonic() - self._started
            self._events.tell("run-ended", state=state, why=failure, seconds=seconds, left=left)

    def _report(self, failure: str = "", *, running: bool = False) -> RunResult:
        result = self._strategy.result
        alone = None if self._baseline is None else self._baseline.result
        results = [result, *([] if alone is None else [alone])]
        return run_result(
            result,
            alone,
            config=self._values,
            seconds=time.monotonic() - self._started,
            failure=failure,
            running=running,
            prompt_format=self._format,
            privacy=[o.fields for o in statements(self._config, results, self._strategy.inner)],
        )

    def _write(self, folder: Path, failure: str) -> None:
        report = self._report(failure)
        told = [str(one["sentence"]) for one in report.privacy]
        for sentence in told:
            logger.info("%s", sentence)
        write_result(report, folder / RESULT)
        learned = self._strategy.result.adapter
        if learned:
            base_model = self._config.model.name
            save_learned(learned, self._plan, folder / ADAPTER, base_model=base_model)
            write_text(folder / ADAPTER / CARD, self._card(told))
            form = json.dumps(self._format, indent=2, ensure_ascii=False)
            write_text(folder / ADAPTER / FILE, form + "\n")
        plot_losses(report, folder / PLOT)
        write_text(folder / REPORT, report_page(report))
        what = f"{'adapter, ' * bool(learned)}{RESULT}, {PLOT} and {REPORT}"
        logger.info("%s are in %s", what, folder)

    def _card(self, privacy: Sequence[str]) -> str:
        result = self._strategy.result
        return model_card(
            result,
            settings=settings(self._config),
            plan=self._plan,
            adapter=result.adapter,
            server_round=result.last_round,
            versions=installed_versions(),
            privacy=privacy,
        ).render()


def _reason(error: BaseException) -> str:
    """What is told of `error`: its text where that is ours, else its kind."""
    if isinstance(error, FlowerSplitError):
        return str(error)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return STOPPED
    return f"{type(error).__name__}; the ServerApp's log has the rest"


def _save_all() -> None:
    for record in list(_open_records):
        try:
            record.save(STOPPED)
        except Exception:
            logger.exception("the run's result could not be saved")


# Before Flower's five seconds for an orderly end begin: a large adapter takes longer to write.
add_exit_handler(_save_all, run_before_force_exit=True)
