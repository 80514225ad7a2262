"""The trunk's queue: sessions' requests wait here, and are computed as the scheduler says.

Nobody waits inside: `work` computes at most one batch and returns. Whoever has submitted a request
calls it until the request is answered, and so computes others' as well.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flower_split.config.trunk import TrunkConfig
from flower_split.errors import SequenceError, TrunkBusyError
from flower_split.segments import Trunk
from flower_split.segments.families import family_of, has_dropout
from flower_split.server.compute.batch import ActivationBudget, Graph, Microbatch, TrunkComputer
from flower_split.server.compute.rows import mixing_key
from flower_split.server.compute.scheduler import Scheduler, Turn
from flower_split.transport.messages import BackwardRequest


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Settings of a trunk's queue; what they mean is said at the same names of `TrunkConfig`."""

    batching: bool = False
    batch_tokens: int = TrunkConfig.batch_tokens
    gather_ms: float = TrunkConfig.gather_ms
    recompute: bool = False
    max_activation_tokens: int = 0

    @classmethod
    def of_trunk(cls, trunk: TrunkConfig) -> "BatchSettings":
        """Those of a run."""
        return cls(
            batching=trunk.batching,
            batch_tokens=trunk.batch_tokens,
            gather_ms=trunk.gather_ms,
            recompute=trunk.recompute,
            max_activation_tokens=trunk.max_activation_tokens,
        )


logger = logging.getLogger(__name__)

Answer = Tensor | None
# Seconds between two looks at a request that another thread may be computing.
_LOOK_SECONDS = 0.01


@dataclass(kw_only=True, eq=False)
class Job:
    """A request that waits, and whom to tell what came out."""

    turn: Turn
    microbatch: Microbatch
    grad: BackwardRequest | None = None
    """None for a forward pass."""
    done: "Done"
    """Told of the success; what it returns is the answer."""
    future: Future[Any] = field(default_factory=Future)
    queue_length: int = 0
    """Other sessions' requests that waited as it came."""
    seconds: float = 0.0
    """That it waited."""
    rows_beside: int = 0
    """Other sessions' rows in its batch."""


Done = Callable[[Job, Answer, Sequence[Tensor | None]], Answer]
"""Takes h2 or g1 of a job as computed, and the adapter's gradients after a backward pass."""


class TrunkQueue:
    """All requests that wait for one trunk.

    Args:
        trunk: The layers, wrapped with their adapters where they have any.
        settings: How requests are put together, and what is kept.
        lock: Held while a batch is computed and its results are handed out.
    """

    def __init__(self, trunk: Trunk, settings: BatchSettings, lock: threading.RLock) -> None:
        self.budget = ActivationBudget(settings.max_activation_tokens)
        self._computer = TrunkComputer(
            trunk, self.budget, recompute=settings.recompute, on_change=self._expect
        )
        self._scheduler = Scheduler(
            max_tokens=settings.batch_tokens, gather=settings.gather_ms / 1000
        )
        self._mixes = settings.batching and family_of(trunk.config).mixes_rows
        self._drops = has_dropout(trunk, trunk.config)
        self._lock = lock
        self._numbers = itertools.count()
        self._jobs: dict[Turn, Job] = {}
        self._mutex = threading.Lock()  # of the scheduler and the jobs; never held for long

    def join(self) -> int:
        """The number of a new session."""
        return next(self._numbers)

    def mix(self, microbatch: Microbatch, *, backward: bool) -> Hashable | None:
        """Whom a pass of `microbatch` can share a batch with; see `Turn.mix`."""
        slot, request = microbatch.party.slot, microbatch.request
        if not self._mixes or (request.dropout and self._drops):
            return None
        if slot is not None and not slot.can_mix:
            return None
        graph = microbatch.graph
        if backward and graph is not None:
            return graph.number
        return mixing_key(request)

    def submit(self, job: Job) -> None:
        """Let `job` wait."""
        with self._mutex:
            job.queue_length = len(self._jobs)
            self._jobs[job.turn] = job
            self._scheduler.add(job.turn)

    def leave(self, session: int) -> None:
        """A session has ended: what it waits for is not computed any more."""
        with self._mutex:
            gone = [self._jobs.pop(turn) for turn in self._scheduler.leave(session)]
        for job in gone:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(SequenceError("the session has ended"))

    def answer(self, job: Job) -> Answer:
        """Compute until `job` is answered; what it was answered."""
        while not job.future.done():
            delay = self.work()
            if not job.future.done() and delay != 0:
                wait([job.future], _LOOK_SECONDS if delay is None else delay)
        answer: Answer = job.future.result()
        return answer

    def work(self) -> float | None:
        """Compute one batch; 0 then, else the seconds until there may be one, None for unknown."""
        with self._lock:
            with self._mutex:
                now = time.monotonic()
                turns = self._scheduler.next(now, self.budget.room)
                if not isinstance(turns, list):
                    return turns
                jobs = [self._jobs.pop(turn) for turn in turns]
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            rows = sum(job.turn.rows for job in jobs)
            for job in jobs:
                job.seconds = now - job.turn.arrived
                job.rows_beside = rows - job.turn.rows
            self._compute(jobs)
            return 0.0

    def _expect(self, graph: Graph) -> None:
        with self._mutex:
            self._scheduler.expect(graph.number, graph.sessions)

    def _compute(self, jobs: list[Job]) -> None:
        try:
            self._compute_together(jobs)
        except Exception as exc:
            if len(jobs) > 1:
                # A fault of one must not be the others'.
                logger.warning("a batch of %d failed: %s", len(jobs), type(exc).__name__)
                for job in jobs:
                    if not job.future.done():
                        job.rows_beside = 0
                        self._compute([job])
            elif jobs and isinstance(exc, torch.OutOfMemoryError):
                busy = TrunkBusyError(
                    "the trunk's device is out of memory. Lower train.batch-size or train.in-flight"
                )
                busy.__cause__ = exc
                jobs[0].future.set_exception(busy)
            elif jobs:
                jobs[0].future.set_exception(exc)

    def _compute_together(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        microbatches = [job.microbatch for job in jobs]
        grads = [job.grad for job in jobs if job.grad is not None]
        answers: Sequence[Answer]
        gradients: Sequence[Sequence[Tensor | None]] = [()] * len(jobs)
        if grads:
            found = self._computer.backward(microbatches, grads)
            answers, gradients = [g1 for g1, _ in found], [own for _, own in found]
        else:
            answers = self._computer.forward(microbatches)
        for job, answer, own in zip(jobs, answers, gradients, strict=True):
            job.future.set_result(job.done(job, answer, own))
