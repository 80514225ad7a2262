"""Figures of a stage elsewhere: asked for now and then, so that nobody who looks waits for them."""

import threading
import time
from typing import Any

from flower_split.server.cluster.stage_job import StageFigures
from flower_split.server.compute.queue import Computed

SECONDS = 0.5
"""Between two questions, at least."""
LOST_SECONDS = 10.0
"""After which a question that was not answered is asked again."""


class PolledFigures:
    """What an actor told last of what it has to do, and has done.

    Who looks has the actor asked anew, unless it is being asked. A stage that was made anew counts
    from zero; what it had computed before stays.

    Args:
        actor: Ray's handle of a `StageActor`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._lock = threading.Lock()
        self._told = StageFigures(name="")
        self._before = Computed()
        self._asks = False
        self._asked = float("-inf")

    @property
    def waiting(self) -> int:
        """Passes that waited there."""
        self._ask()
        return self._told.waiting

    @property
    def computed(self) -> Computed:
        """What was computed there, also before the actor was made anew."""
        self._ask()
        with self._lock:
            return self._before + self._told.computed

    def _ask(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._asked < (LOST_SECONDS if self._asks else SECONDS):
                return
            self._asks, self._asked = True, now
        try:
            self._actor.figures.remote().future().add_done_callback(self._take)
        except Exception:  # Ray has ended
            self._told = StageFigures(name=self._told.name, computed=self._told.computed)

    def _take(self, answer: Any) -> None:
        with self._lock:
            self._asks = False
            told = self._told
            if answer.exception() is not None:  # it is gone: nothing waits there
                self._told = StageFigures(name=told.name, computed=told.computed)
                return
            new: StageFigures = answer.result()
            if told.name not in ("", new.name):
                self._before += told.computed
            self._told = new
