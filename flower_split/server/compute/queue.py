"""The trunk's queue: requests of all sessions wait here, and one thread computes them.

Whoever submits gets a future and goes on. The queue's own thread takes what is due: first the
calls, which are all that is no forward or backward pass, in the order of their coming; then the
batch that the scheduler chooses. The thread lives while there is a session or something to do.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from flower_split.config.trunk import TrunkConfig
from flower_split.errors import SequenceError, TrunkBusyError
from flower_split.segments import Trunk
from flower_split.segments.families import known_family
from flower_split.segments.randomness import has_dropout
from flower_split.segments.refusals import LONGROPE, rope_types
from flower_split.server.compute.activation_budget import ActivationBudget, budget_of
from flower_split.server.compute.batch import (
    Gradients,
    Graph,
    Microbatch,
    TrunkComputer,
)
from flower_split.server.compute.memory import PassMemory
from flower_split.server.compute.rows import mixing_key
from flower_split.server.compute.scheduler import Scheduler, Turn
from flower_split.transport.messages import BackwardRequest, Reply

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Answer = Tensor | None


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Settings of a trunk's queue; what they mean is said at the same names of `TrunkConfig`."""

    batching: bool = False
    batch_tokens: int = TrunkConfig.batch_tokens
    gather_ms: float = TrunkConfig.gather_ms
    recompute: bool = False
    max_activation_tokens: int = 0
    max_memory: float = 0.0

    @classmethod
    def of_trunk(cls, trunk: TrunkConfig) -> "BatchSettings":
        """Those of a run."""
        return cls(
            batching=trunk.batching,
            batch_tokens=trunk.batch_tokens,
            gather_ms=trunk.gather_ms,
            recompute=trunk.recompute,
            max_activation_tokens=trunk.max_activation_tokens,
            max_memory=trunk.max_memory,
        )


@dataclass(kw_only=True, eq=False)
class Job:
    """A forward or a backward pass that waits, and whom to tell what came out."""

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


Done = Callable[[Job, Answer, Gradients], Reply]
"""Takes h2 or g1 of a job as computed, and all gradients after a backward pass."""


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What was computed so far."""

    passes: int = 0
    """Forward and backward passes of microbatches."""
    tokens: int = 0
    """Their positions, rows x tokens, padding included."""
    seconds: float = 0.0
    """That the compute thread spent on them. An accelerator may go on after it."""

    def __add__(self, other: "Computed") -> "Computed":
        return Computed(
            passes=self.passes + other.passes,
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
        )


class TrunkQueue:
    """All requests that wait for one trunk, and the thread that computes them.

    Args:
        trunk: The layers, wrapped with their adapters where they have any.
        settings: How requests are put together, and what is kept.
        turns: A context that several trunks on one device have in common, and only one of which is
            in it at a time: it computes in there. None where the device is this trunk's alone.
        budget: Of what is kept, where others that take these turns keep of it too.
    """

    def __init__(
        self,
        trunk: Trunk,
        settings: BatchSettings,
        turns: AbstractContextManager[object] | None = None,
        budget: ActivationBudget | None = None,
    ) -> None:
        self.memory = PassMemory(trunk, int(settings.max_memory * 1e9))
        self.budget = budget or budget_of(
            trunk, settings.max_activation_tokens, turns, self.look_again
        )
        self._drops = has_dropout(trunk, trunk.config)
        self._computer = TrunkComputer(
            trunk,
            self.budget,
            recompute=settings.recompute,
            drops=self._drops,
            on_change=self._expect,
        )
        self._scheduler = Scheduler(
            max_tokens=settings.batch_tokens,
            gather=settings.gather_ms / 1000,
            max_memory=self.memory.max_bytes,
        )
        family = known_family(trunk.config.model_type)
        # LLM.int8 chooses columns by the values of all rows, and PEFT's quantized layers are not
        # those that rows of several adapters are mixed in.
        alone = getattr(trunk.config, "quantization_config", None) is not None
        # Its frequencies are chosen for a whole pass, by the longest text of any row.
        alone = alone or LONGROPE in rope_types(trunk.config)
        mixes = family is not None and family.mixes_rows
        self.computed = Computed()
        """To look at from any thread."""
        self._mixes = settings.batching and mixes and not alone
        self._numbers = itertools.count()
        self._turns = nullcontext() if turns is None else turns
        self._computing = threading.RLock()
        self._changed = threading.Condition()  # of all that follows; never held for long
        self._jobs: dict[Turn, Job] = {}
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._sessions: set[int] = set()
        self._thread: threading.Thread | None = None
        self._changes = 0
        self._num_threads = torch.get_num_threads()

    def join(self) -> int:
        """The number of a new session."""
        number = next(self._numbers)
        with self._changed:
            self._sessions.add(number)
        return number

    @property
    def waiting(self) -> int:
        """Passes that wait for their turn now; to look at, and nobody waits for the look."""
        return len(self._jobs)

    def is_alone(self) -> bool:
        """Whether at most one session is open."""
        with self._changed:
            return len(self._sessions) <= 1

    def look_again(self) -> None:
        """Something outside of it has changed that a pass may wait for, such as room."""
        with self._changed:
            self._note_change()

    @property
    def is_idle(self) -> bool:
        """Whether no session is open, and nothing is to be done."""
        with self._changed:
            return not self._sessions and not self._calls and self._thread is None

    def leave(self, session: int) -> None:
        """A session has ended: what it waits for is not computed any more."""
        with self._changed:
            self._sessions.discard(session)
            gone = [self._jobs.pop(turn) for turn in self._scheduler.leave(session)]
            self._note_change()
        for job in gone:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(SequenceError("the session has ended"))

    def mix(self, microbatch: Microbatch, *, backward: bool) -> Hashable | None:
        """Whom a pass of `microbatch` can share a batch with; see `Turn.mix`."""
        slot, request = microbatch.session.slot, microbatch.request
        if not self._mixes or (request.dropout and self._drops):
            return None
        if slot is not None and not slot.can_mix:
            return None
        graph = microbatch.graph
        if backward and graph is not None:
            return graph.number
        return mixing_key(request)

    def submit(self, job: Job) -> Future[Any]:
        """Let a pass wait for its turn; never waits itself."""
        if _is_inside_a_backward_pass():
            with self._turns, self._computing, _unwatched():
                self._compute([job])
            with self._changed:
                self._note_change()  # it may have freed what others wait for
            return job.future
        with self._changed:
            if job.turn.session not in self._sessions:
                job.future.set_exception(SequenceError("the session has ended"))
                return job.future
            job.queue_length = len(self._jobs)
            self._jobs[job.turn] = job
            self._scheduler.add(job.turn)
            self._wake()
        return job.future

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` done by the queue's thread, before all passes that wait; never waits."""
        future: Future[Result] = Future()
        with self._changed:
            self._calls.append((future, work))
            self._wake()
        return future

    def exclusive(self) -> AbstractContextManager[object]:
        """For as long as the context lasts nothing is computed, and requests gather.

        What belongs to the trunk, such as its adapters, is read and changed by the queue's thread,
        or in here.
        """
        return self._computing

    def _wake(self) -> None:
        self._note_change()
        if self._thread is None:
            # A daemon: whoever forgets to close a session can still exit.
            self._thread = threading.Thread(target=self._run, name="trunk-compute", daemon=True)
            self._thread.start()

        # A new thread has a number of its own for its kernels, and sums depend on that number.
        self._num_threads = torch.get_num_threads()

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._turns, self._computing:
                with self._changed:
                    seen, work = self._changes, self._take()
                if callable(work):
                    if torch.get_num_threads() != self._num_threads:
                        torch.set_num_threads(self._num_threads)
                    work()
                    continue
            with self._changed:
                if self._changes != seen:
                    continue
                if work is None and not self._sessions:
                    self._thread = None
                    return
                self._changed.wait(work)

    def _take(self) -> Callable[[], None] | float | None:
        """What is to be done now; or the seconds until something may be; or None."""
        if self._calls:
            return partial(_do, *self._calls.popleft())
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
        return partial(self._compute, jobs)

    def _expect(self, graph: Graph) -> None:
        with self._changed:
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
            elif jobs:
                jobs[0].future.set_exception(mapped(exc))

    def _compute_together(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        microbatches = [job.microbatch for job in jobs]
        grads = [job.grad for job in jobs if job.grad is not None]
        answers: Sequence[Answer]
        gradients = [Gradients()] * len(jobs)
        began = time.perf_counter()
        if grads:
            gradients = self._computer.backward(microbatches, grads)
            answers = [found.hidden for found in gradients]
        else:
            answers = self._computer.forward(microbatches)
        self.computed += Computed(
            passes=len(jobs),
            tokens=sum(job.turn.cost for job in jobs),
            seconds=time.perf_counter() - began,
        )
        for job, answer, own in zip(jobs, answers, gradients, strict=True):
            job.future.set_result(job.done(job, answer, own))


def _do(future: "Future[Any]", work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as exc:
        future.set_exception(mapped(exc))


def mapped(error: Exception) -> Exception:
    """`error`, or what is said to a silo whose request did not fit into the device's memory."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    busy = TrunkBusyError(
        "the trunk's device is out of memory. Lower train.batch-size or train.in-flight"
    )
    busy.__cause__ = error
    return busy


def _unwatched() -> AbstractContextManager[object]:
    """Keeps the silo's hooks on saved tensors, a checkpoint's around its model, off the trunk's."""
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _same)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _is_inside_a_backward_pass() -> bool:
    """Whether the calling thread computes a backward pass, of a silo in the trunk's own process.

    Autograd has one thread for each accelerator, which such a caller occupies until it has its
    answer: a backward pass of the trunk in another thread would wait for it for ever.
    """
    return bool(torch._C._current_graph_task_id() != -1)
