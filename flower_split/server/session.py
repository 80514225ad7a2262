"""One silo's session on the trunk: activations, caches, gradients and optimizer steps.

Axes: B rows of a microbatch, T new tokens a row, S tokens with the cached ones, H hidden size.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from torch import Tensor

from flower_split.errors import SequenceError, WireError
from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    gradient_norms,
)
from flower_split.segments import Trunk
from flower_split.server.border import TrunkBorder
from flower_split.server.caches import CacheShelf, TrunkCache
from flower_split.server.compute.batch import Microbatch, Party
from flower_split.server.compute.queue import Answer, Done, Job, TrunkQueue
from flower_split.server.compute.scheduler import Kind, Turn
from flower_split.server.forward_checks import check_forward, check_keeping
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    QueueUse,
    SessionLimits,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
)


class TrunkSession:
    """`BackendSession` on a trunk that several sessions share.

    A session's gradients are kept apart from every other's until its own optimizer step. All
    sessions of a trunk share `lock`, so that calls from several threads compute one at a time, and
    `queue`, where passes of several sessions come together.

    Args:
        trunk: The layers.
        spec: What the handshake agreed on.
        border: Where its tensors enter and leave the trunk.
        slot: The session's adapter and optimizer; None for a frozen trunk.
        limits: Bounds of what is kept.
        queue: Where its passes wait for the trunk; shared by all sessions.
        lock: Shared by all sessions of the trunk.
        on_finish: Called once when the silo declares the session complete.
        on_close: Called once when the session's state is freed.
        resumed: Tag of the optimizer state that `slot` resumes from; empty when it starts afresh.
    """

    def __init__(
        self,
        trunk: Trunk,
        spec: SessionSpec,
        border: TrunkBorder,
        slot: AdapterSlot | None,
        limits: SessionLimits,
        queue: TrunkQueue,
        lock: threading.RLock,
        *,
        on_finish: Callable[[SessionSummary], None],
        on_close: Callable[[], None],
        resumed: str = "",
    ) -> None:
        self.resumed = resumed
        self._trunk = trunk
        self._spec = spec
        self._slot = slot
        self._limits = limits
        self._lock = lock
        self._on_finish = on_finish
        self._on_close = on_close
        self._border = border
        self._queue = queue
        self._pending: dict[int, Microbatch] = {}
        self._caches = CacheShelf(trunk, limits.max_cached_tokens)
        self._steps = self._forwards = self._backwards = self._tokens = 0
        self._waited = QueueUse()
        self._party = Party(
            number=queue.join(), slot=slot, seed=spec.seed, open_cache=self._open_cache
        )
        self._last_microbatch = -1
        self._ended = False

    def forward(self, request: ForwardRequest) -> Tensor:
        """h2 of a microbatch, (B, T, H).

        Raises:
            SequenceError: wrong step, a microbatch out of order, or an ended session.
            TrunkBusyError: too many activations or cached tokens.
            WireError: shapes do not fit the model, or the dtype is not the session's.
        """
        output = self._queue.answer(self._forward_job(request))
        if output is None:
            raise TypeError("a forward pass has an output")
        return output

    def backward(self, request: BackwardRequest) -> Tensor | None:
        """g1 of a microbatch, (B, T, H), or None when not wanted.

        The adapter's gradients are added to those of the step's earlier microbatches.

        Raises:
            SequenceError: wrong step, or a microbatch that has no activations here.
            WireError: the gradient's shape or dtype differs from h2's.
        """
        return self._queue.answer(self._backward_job(request))

    def submit(self, request: ForwardRequest | BackwardRequest) -> Future[Any]:
        """Let a pass wait for its turn; see `QueueingSession`."""
        if isinstance(request, ForwardRequest):
            return self._forward_job(request).future
        return self._backward_job(request).future

    def work(self) -> float | None:
        """Compute what is due; see `QueueingSession`."""
        return self._queue.work()

    def _forward_job(self, request: ForwardRequest) -> Job:
        self._check_step(request.step)
        if request.microbatch <= self._last_microbatch:
            raise SequenceError(
                f"microbatch {request.microbatch} does not follow {self._last_microbatch}"
            )
        held = [held.shape for held in self._pending.values()]
        check_forward(request, self._trunk, self._limits)
        if request.keep_graph:
            check_keeping(request, self._spec, self._limits, held, self._queue.budget)
        request = self._border.enter(request)
        microbatch = Microbatch(party=self._party, request=request)

        def done(job: Job, h2: Answer, _: Sequence[Tensor | None]) -> Answer:
            self._last_microbatch = request.microbatch
            if request.keep_graph:
                self._pending[request.microbatch] = microbatch
            self._forwards += 1
            self._tokens += job.turn.cost
            self._count(job)
            return None if h2 is None else self._border.outgoing("h2", h2, request)

        return self._wait("forward", microbatch, None, done)

    def _backward_job(self, request: BackwardRequest) -> Job:
        self._check_step(request.step)
        microbatch = self._pending.get(request.microbatch)
        if microbatch is None:
            raise SequenceError(
                f"microbatch {request.microbatch} has no activations here: it had no forward "
                "pass with gradients in this step, or its backward pass was already made"
            )
        begun = microbatch.request
        if request.grad.shape != begun.hidden.shape:
            raise WireError(
                f"g2 is {tuple(request.grad.shape)}, expected {tuple(begun.hidden.shape)}"
            )
        request = replace(request, grad=self._border.incoming("g2", request.grad, begun))

        def done(job: Job, g1: Answer, gradients: Sequence[Tensor | None]) -> Answer:
            self._pending.pop(request.microbatch, None)
            if self._slot is not None:
                self._slot.accumulate(gradients)
            self._backwards += 1
            self._count(job)
            return None if g1 is None else self._border.outgoing("g1", g1, begun)

        return self._wait("backward", microbatch, request, done)

    def _wait(
        self,
        kind: Kind,
        microbatch: Microbatch,
        grad: BackwardRequest | None,
        done: Done,
    ) -> Job:
        rows, tokens = microbatch.shape
        turn = Turn(
            session=self._party.number,
            kind=kind,
            rows=rows,
            tokens=tokens,
            arrived=time.monotonic(),
            mix=self._queue.mix(microbatch, backward=grad is not None),
            keeps=grad is None and microbatch.request.keep_graph,
            holds=bool(self._pending),
        )
        job = Job(turn=turn, microbatch=microbatch, grad=grad, done=done)
        self._queue.submit(job)
        return job

    def _count(self, job: Job) -> None:
        self._waited = QueueUse(
            seconds=self._waited.seconds + job.seconds,
            length=self._waited.length + job.queue_length,
            rows=self._waited.rows + job.turn.rows,
            rows_beside=self._waited.rows_beside + job.rows_beside,
        )

    def release(self, microbatch: int) -> None:
        """Free the activations of a microbatch that gets no backward pass."""
        with self._lock:
            kept = self._pending.pop(microbatch, None)
            if kept is not None:
                kept.free()

    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache."""
        with self._lock:
            self._caches.drop(cache_id)

    def step(self, request: StepRequest) -> StepReply:
        """Clip by the global norm and step the adapter, once for each step number.

        Raises:
            SequenceError: not the next step, an evaluation session, or an ended one.
            WireError: learning rate or norms are out of bounds.
        """
        with self._lock:
            self._check_step(request.step)
            if self._spec.purpose != "train":
                raise SequenceError("an evaluation session makes no optimizer steps")
            settings = self._spec.optimizer
            settings.check_learning_rate(request.learning_rate)
            before = checked_norms(request.norms_before)
            after = checked_norms(request.norms_after)
            own: tuple[float, ...] = ()
            if self._slot is not None:
                parameters = self._slot.gather()
                if settings.max_grad_norm > 0:
                    own = checked_norms(gradient_norms(parameters))
                    clip_by_global_norm(parameters, [*before, *own, *after], settings.max_grad_norm)
                self._slot.step(request.learning_rate)
            self._free_pending()
            self._steps += 1
            return StepReply(norms=own)

    def finish(self) -> SessionSummary:
        """Declare the session complete; what it holds is freed by `close`.

        Raises:
            SequenceError: it was already ended.
        """
        with self._lock:
            self._check_step(self._steps)
            summary = SessionSummary(
                steps=self._steps,
                forwards=self._forwards,
                backwards=self._backwards,
                tokens=self._tokens,
                queue=self._waited,
            )
            self._on_finish(summary)
            self._ended = True
            self._free()
            return summary

    def close(self) -> None:
        """Free everything, however the session ended. Can be called twice."""
        with self._lock:
            self._ended = True
            self._free()

    def _free(self) -> None:
        self._queue.leave(self._party.number)
        self._free_pending()
        self._caches.clear()
        self._on_close()

    def _free_pending(self) -> None:
        for microbatch in self._pending.values():
            microbatch.free()
        self._pending.clear()

    def _open_cache(self, request: ForwardRequest) -> TrunkCache | None:
        if request.cache is None:
            return None
        rows, tokens = request.hidden.shape[:2]
        if request.keep_graph:
            return self._caches.scratch(rows)
        return self._caches.use(request.cache, rows, tokens)

    def _check_step(self, step: int) -> None:
        if self._ended:
            raise SequenceError("the session has ended")
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")
