"""One silo's session on the trunk: activations, caches, gradients and optimizer steps.

Axes: B rows of a microbatch, T new tokens a row, S tokens with the cached ones, H hidden size.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from torch import Tensor

from flower_split.errors import SequenceError, TrunkBusyError, WireError
from flower_split.segments import Trunk
from flower_split.segments.refusals import context_length
from flower_split.server.adapter_calls import AdapterCalls
from flower_split.server.border import TrunkBorder
from flower_split.server.caches import SessionCaches, TrunkCache
from flower_split.server.compute.batch import Gradients, Microbatch, SessionContext
from flower_split.server.compute.queue import Answer, Job, TrunkQueue
from flower_split.server.compute.scheduler import Turn
from flower_split.server.compute.session_step import SessionStep
from flower_split.server.stepping import AdapterSlot
from flower_split.server.ticket_record import TicketRecord
from flower_split.transport.bounds import check_forward
from flower_split.transport.messages import (
    PREFIX_GRAD,
    AdapterCall,
    BackwardReply,
    BackwardRequest,
    Discard,
    DropCache,
    Finish,
    ForwardReply,
    ForwardRequest,
    QueueUse,
    Release,
    Reply,
    Request,
    SessionLimits,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Unanswered,
    Weigh,
)


class TrunkSession:
    """`BackendSession` on a trunk that several sessions share.

    A session's gradients are kept apart from every other's until its own optimizer step. What a
    request does to the session, it does in the queue's thread.

    A silo's next request comes when the last is answered, so that all sessions have equal turns.

    Args:
        trunk: The layers.
        spec: What the handshake agreed on.
        border: Where its tensors enter and leave the trunk.
        slot: The session's adapter and optimizer; None for a frozen trunk.
        limits: Bounds of what is kept.
        queue: Where its requests wait for the trunk; shared by all sessions.
        record: Of the session's ticket, already open; it hears how the session ends.
        resumed: Tag of the optimizer state that `slot` resumes from; empty when it starts afresh.
        calls: Answers what the silo wants done with the adapter; None for a frozen trunk.
        follows_autocast: Whether the trunk computes under the silo's autocast.
        fixed_optimizer: Whether a step's constants must be those of the handshake.
        prefix_width: W of the session's prefix, heads x head size; 0 where it has none.
    """

    depth = 1
    """See `BackendSession`."""

    def __init__(
        self,
        trunk: Trunk,
        spec: SessionSpec,
        border: TrunkBorder,
        slot: AdapterSlot | None,
        limits: SessionLimits,
        queue: TrunkQueue,
        *,
        record: TicketRecord,
        resumed: str = "",
        calls: AdapterCalls | None = None,
        follows_autocast: bool = False,
        fixed_optimizer: bool = False,
        prefix_width: int = 0,
    ) -> None:
        self._prefix_width = prefix_width
        self.resumed = resumed
        self._calls = calls
        self._follows_autocast = follows_autocast
        self._stepping = SessionStep(spec, slot, fixed=fixed_optimizer)
        self._trunk = trunk
        self._spec = spec
        self._slot = slot
        self._limits = limits
        self._context_length = context_length(trunk.config)
        self._record = record
        self._border = border
        self._queue = queue
        self._pending: dict[int, Microbatch] = {}
        self._caches = SessionCaches(trunk, limits.max_cached_tokens)
        self._steps = self._forwards = self._backwards = self._tokens = 0
        self._waited = QueueUse()
        self._context = SessionContext(
            number=queue.join(), slot=slot, seed=spec.seed, open_cache=self._open_cache
        )
        self._last_microbatch = -1
        self._ended = False
        record.follow(self.summary)

    def submit(self, request: Request) -> Future[Reply]:
        """Let `request` wait for its turn; see `BackendSession.submit`.

        The future fails with

        - `SequenceError`: wrong step, a microbatch out of order or without activations, an
          optimizer step of an evaluation, or an ended session.
        - `TrunkBusyError`: too many tokens, activations or cached tokens, or the device is full.
        - `WireError`: a shape does not fit the model, a dtype is not the session's, or a learning
          rate or norm is out of bounds.
        - `TransformError`: a transform at the cut failed.
        """
        try:
            match request:
                case ForwardRequest():
                    return self._queue.submit(self._forward_job(request))
                case BackwardRequest():
                    return self._queue.submit(self._backward_job(request))
                case _:
                    return self._queue.call(partial(self._answer, request))
        except Exception as error:
            refused: Future[Reply] = Future()
            refused.set_exception(error)
            return refused

    def close(self) -> Future[None]:
        """Free everything, however the session ended. Can be called twice."""
        return self._queue.call(self._close)

    def summary(self) -> SessionSummary:
        """What was counted so far."""
        return SessionSummary(
            steps=self._steps,
            forwards=self._forwards,
            backwards=self._backwards,
            tokens=self._tokens,
            queue=self._waited,
        )

    def _answer(self, request: StepRequest | AdapterCall | Finish | Unanswered) -> Reply:
        match request:
            case StepRequest():
                return self._step(request)
            case AdapterCall():
                self._check_open()
                if self._calls is None:
                    raise SequenceError("this session's trunk is frozen: it has no adapter")
                answer = self._calls.answer(request)
                if request.action in ("write", "restore"):
                    self._free_pending()  # activations of other values than the adapter has now
                return answer
            case Discard():
                if self._slot is not None:
                    self._slot.discard(zeros=request.zeros)
            case Weigh():
                self._check_open()
                if self._slot is None or self._slot.rows is None:
                    raise SequenceError("this session's gradients are not held by row")
                self._slot.rows.weigh(request)
            case Finish():
                return self._finish()
            case Release():
                self._free(request.microbatch)
            case DropCache():
                self._caches.drop(request.cache_id)
        return None

    def _forward_job(self, request: ForwardRequest) -> Job:
        self._check_step(request.step)
        self._check_follows(request)
        past = check_forward(
            request, self._trunk.hidden_size, self._limits, self._spec, self._context_length
        )
        if request.prefix is not None and request.prefix.shape[2] != self._prefix_width:
            raise WireError(
                f"prefix: {request.prefix.shape[2]} wide, the trunk's keys and values are "
                f"{self._prefix_width}"
            )
        if request.keep_graph:
            self._check_keeping(request)
        if request.adapter.copy and self._slot is None:
            raise SequenceError("this session's trunk is frozen: it has no adapter to copy")
        rows = None if self._slot is None else self._slot.rows
        by_row = 0 if rows is None else rows.bytes_by_row
        memory = self._queue.memory.admit(request, past, by_row=by_row)
        request = self._border.enter(request)
        if not self._follows_autocast:
            request = replace(request, autocast="")
        microbatch = self._microbatch(request, memory)

        def done(job: Job, h2: Answer, _: Gradients) -> Reply:
            self._last_microbatch = request.microbatch
            if request.keep_graph:
                self._pending[request.microbatch] = microbatch
            self._forwards += 1
            self._tokens += job.turn.cost
            self._count(job)
            if h2 is None:
                return None
            return self._forward_reply(microbatch, self._border.outgoing("h2", h2, request))

        return Job(turn=self._turn(microbatch), microbatch=microbatch, done=done)

    def _backward_job(self, request: BackwardRequest) -> Job:
        self._check_step(request.step)
        microbatch = self._pending.get(request.microbatch)
        if microbatch is None:
            raise SequenceError(
                f"microbatch {request.microbatch} has no activations here: it had no forward "
                "pass with gradients in this step, its backward pass was already made, or the "
                "adapter was written or restored since"
            )
        begun = microbatch.request
        if request.grad.shape != begun.hidden.shape:
            raise WireError(
                f"g2 is {tuple(request.grad.shape)}, expected {tuple(begun.hidden.shape)}"
            )
        if not math.isfinite(request.orthogonality_grad):
            raise WireError(f"orthogonality_grad is {request.orthogonality_grad}")
        if request.adapter_grad == "return":
            self._check_returning()
        rows = None if self._slot is None else self._slot.rows
        if rows is not None:
            rows.check(request.adapter_grad)
        elif request.adapter_grad == "hold":
            raise SequenceError("this session's gradients are not held by row")
        request = replace(request, grad=self._border.incoming("g2", request.grad, begun))

        def done(job: Job, g1: Answer, found: Gradients) -> Reply:
            gradients = found.adapter
            self._pending.pop(request.microbatch, None)
            if self._slot is not None and request.adapter_grad in ("add", "measure"):
                self._slot.accumulate(gradients)
            self._backwards += 1
            self._count(job)
            left = None if g1 is None else self._border.outgoing("g1", g1, begun)
            if rows is not None and found.rows is not None and request.adapter_grad == "hold":
                norms = rows.hold(request.microbatch, found.rows)
                return BackwardReply(grad=left, squared_norms=norms)
            if found.prefix is None:
                return self._backward_reply(request, left, gradients)
            side = self._border.outgoing(PREFIX_GRAD, found.prefix, begun)
            return BackwardReply(grad=left, prefix_grad=side)

        turn = self._turn(microbatch, backward=True)
        return Job(turn=turn, microbatch=microbatch, grad=request, done=done)

    def _check_follows(self, request: ForwardRequest) -> None:
        """Raise unless the microbatch is a new one."""
        if request.microbatch <= self._last_microbatch:
            raise SequenceError(
                f"microbatch {request.microbatch} does not follow {self._last_microbatch}"
            )

    def _check_returning(self) -> None:
        """Raise unless the silo may be given the adapter's gradients."""
        if self._calls is None:
            raise SequenceError("this session's trunk is frozen: its adapter has no gradient")
        self._calls.check_shared()

    def _microbatch(self, request: ForwardRequest, memory: int) -> Microbatch:
        """The microbatch of an entered request."""
        return Microbatch(session=self._context, request=request, memory=memory)

    def _forward_reply(self, microbatch: Microbatch, hidden: Tensor) -> Reply:
        term = microbatch.orthogonality
        return hidden if term is None else ForwardReply(hidden=hidden, orthogonality=term)

    def _backward_reply(
        self, request: BackwardRequest, g1: Answer, gradients: Sequence[Tensor | None]
    ) -> Reply:
        if self._slot is not None and request.adapter_grad == "return":
            return BackwardReply(grad=g1, adapter_grads=self._slot.of_all(gradients))
        if request.adapter_grad != "measure":
            return g1
        norm, largest = (0.0, 0.0) if self._slot is None else self._slot.measure()
        return BackwardReply(grad=g1, norm=norm, largest=largest)

    def _turn(self, microbatch: Microbatch, *, backward: bool = False) -> Turn:
        rows, tokens = microbatch.shape
        return Turn(
            session=self._context.number,
            kind="backward" if backward else "forward",
            rows=rows,
            tokens=tokens,
            arrived=time.monotonic(),
            mix=self._queue.mix(microbatch, backward=backward),
            keeps=not backward and microbatch.request.keep_graph,
            holds=bool(self._pending),
            memory=microbatch.memory,
        )

    def _check_keeping(self, request: ForwardRequest) -> None:
        """Raise unless the session may have this microbatch wait for a backward pass."""
        if self._spec.purpose != "train" or (request.cache and request.cache.past_length):
            raise SequenceError(
                "a graph is kept only in a training session and without a filled key-value "
                "cache; evaluate and generate under torch.no_grad()"
            )
        if len(self._pending) >= self._limits.max_in_flight:
            raise TrunkBusyError(
                f"{len(self._pending)} microbatches wait for their backward pass, the trunk's "
                "limit. Make backward passes sooner, or raise trunk.max-in-flight"
            )
        waiting = sum(microbatch.tokens for microbatch in self._pending.values())
        tokens = Microbatch(session=self._context, request=request).tokens
        bound = self._queue.budget.max_tokens
        if bound and waiting + tokens > bound:
            raise TrunkBusyError(
                f"{waiting} tokens of the session wait for their backward pass, and with {tokens} "
                f"more it alone would exceed the trunk's bound of {bound} over all "
                "sessions. Lower train.batch-size or train.in-flight, or raise "
                "trunk.max-activation-tokens"
            )

    def _count(self, job: Job) -> None:
        self._waited = QueueUse(
            seconds=self._waited.seconds + job.seconds,
            length=self._waited.length + job.queue_length,
            rows=self._waited.rows + job.turn.rows,
            rows_beside=self._waited.rows_beside + job.rows_beside,
        )

    def _step(self, request: StepRequest) -> StepReply:
        """Clip by the global norm and step the adapter, once for each step number."""
        self._check_step(request.step)
        self._stepping.check(request)
        own = self._stepping.begin(request)
        self._stepping.take(request, [*request.norms_before, *own, *request.norms_after])
        self._note_step()
        return StepReply(norms=own)

    def _note_step(self) -> None:
        """A step was taken."""
        self._free_pending()
        self._steps += 1

    def _finish(self) -> SessionSummary:
        self._check_step(self._steps)
        summary = self.summary()
        self._record.finish(summary)
        self._close()
        return summary

    def _close(self) -> None:
        self._ended = True
        self._queue.leave(self._context.number)
        self._free_pending()
        self._caches.clear()
        self._record.close()

    def _free(self, number: int) -> None:
        kept = self._pending.pop(number, None)
        if kept is not None:
            kept.free()

    def _free_pending(self) -> None:
        for microbatch in self._pending.values():
            microbatch.free()
        self._pending.clear()

    def _open_cache(self, request: ForwardRequest, prefix: Tensor | None) -> TrunkCache | None:
        rows, tokens = request.hidden.shape[:2]
        if request.cache is None:
            return None if prefix is None else self._caches.scratch(rows, prefix)
        if request.keep_graph:
            return self._caches.scratch(rows, prefix)
        return self._caches.use(request.cache, rows, tokens, prefix)

    def _check_open(self) -> None:
        if self._ended:
            raise SequenceError("the session has ended")

    def _check_step(self, step: int) -> None:
        self._check_open()
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")
