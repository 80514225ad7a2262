"""One silo's session on a chain: passes go from stage to stage, and steps are taken by all or none.

Axes: B rows of a microbatch, T tokens a row, H hidden size, L layers.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal

import torch
from torch import Tensor

from flower_split.errors import SequenceError, TrunkError, WireError
from flower_split.optimization.clipping import global_norm
from flower_split.server.adapter_calls import AdapterCalls
from flower_split.server.border import TrunkBorder
from flower_split.server.compute.session_step import SessionStep
from flower_split.server.stages.chain_terms import ChainTerms
from flower_split.server.stages.futures import failed, gathered, in_thread, then, unless, when_done
from flower_split.server.stages.messages import (
    BeginStep,
    FinishStage,
    Passed,
    Retract,
    StageBackwardReply,
    StageOutcome,
    StageRequest,
    TakeStep,
    UndoStep,
)
from flower_split.server.stages.stage import P, Stage, StageSession
from flower_split.server.ticket_record import TicketRecord
from flower_split.transport.bounds import check_forward
from flower_split.transport.messages import (
    OWN_ADAPTER,
    PREFIX_GRAD,
    AdapterCall,
    BackwardReply,
    BackwardRequest,
    Discard,
    DropCache,
    Finish,
    ForwardRequest,
    QueueUse,
    Release,
    Reply,
    Request,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Weigh,
)

NOTHING = torch.empty(0)


class ChainSession(Generic[P]):
    """`BackendSession` on a chain of stages.

    Args:
        stages: All of them, in the order of their layers.
        sessions: The session's part at each.
        spec: What the handshake agreed on.
        entry: Where h1 enters and g1 leaves.
        exit_: Where h2 leaves and g2 enters.
        terms: See there.
        record: Of the session's ticket, already open.
        resumed: Tag of the state that it resumes from; empty when it starts afresh.
        calls: Answers what the silo wants done with the adapter; None for a frozen trunk.
        prefix_width: W of the session's prefix; 0 where it has none.
        leave: Told what every stage leaves, before `record` is finished.
        on_end: Called once, when it is closed.
    """

    def __init__(
        self,
        stages: Sequence[Stage[P]],
        sessions: Sequence[StageSession[P]],
        spec: SessionSpec,
        entry: TrunkBorder,
        exit_: TrunkBorder,
        terms: ChainTerms,
        *,
        record: TicketRecord,
        resumed: str,
        calls: AdapterCalls | None,
        prefix_width: int,
        leave: Callable[[list[StageOutcome]], None],
        on_end: Callable[[], None],
    ) -> None:
        self.resumed = resumed
        self.depth = 2 * len(stages)
        """See `BackendSession`: so many that no stage waits for the wire."""
        self._stages = list(stages)
        self._sessions = list(sessions)
        self._spec = spec
        self._entry, self._exit = entry, exit_
        self._terms = terms
        self._record = record
        self._calls = calls
        self._prefix_width = prefix_width
        self._leave = leave
        self._on_end = on_end
        self._queue = QueueUse()
        self._stepping = SessionStep(spec, None, fixed=terms.fixed_optimizer)
        self._has_adapter = [bool(stage.held) for stage in stages]
        self._begun: dict[int, ForwardRequest] = {}
        self._shapes: dict[int, torch.Size] = {}
        self._steps = self._forwards = self._backwards = self._tokens = 0
        self._asked_forward = self._asked_backward = 0
        self._last_microbatch = -1
        self._broken: BaseException | None = None
        """Why some stages have done what others have not, and cannot take it back."""
        self._ended = False
        self._closing = threading.Lock()
        record.follow(self.summary)

    def submit(self, request: Request) -> Future[Reply]:
        """See `BackendSession`; the errors are those of `TrunkSession.submit`."""
        try:
            match request:
                case ForwardRequest():
                    return self._forward(request)
                case BackwardRequest():
                    return self._backward(request)
                case _:
                    return in_thread(partial(self._answer, request))
        except Exception as error:
            return failed(error)

    def close(self) -> Future[None]:
        """Free everything at all stages. Can be called twice."""
        return in_thread(self._close)

    def summary(self) -> SessionSummary:
        """What was counted so far."""
        return SessionSummary(
            steps=self._steps,
            forwards=self._forwards,
            backwards=self._backwards,
            tokens=self._tokens,
            queue=self._queue,
        )

    def _forward(self, request: ForwardRequest) -> Future[Reply]:
        self._check_step(request.step)
        if request.microbatch <= self._last_microbatch:
            raise SequenceError(
                f"microbatch {request.microbatch} does not follow {self._last_microbatch}"
            )
        terms = self._terms
        check_forward(request, terms.hidden_size, terms.limits, self._spec, terms.context_length)
        if request.prefix is not None and request.prefix.shape[2] != self._prefix_width:
            raise WireError(
                f"prefix: {request.prefix.shape[2]} wide, the trunk's keys and values are "
                f"{self._prefix_width}"
            )
        if request.adapter.copy and self._calls is None:
            raise SequenceError("this session's trunk is frozen: it has no adapter to copy")
        entered = self._entry.enter(request)
        before, self._last_microbatch = self._last_microbatch, request.microbatch
        if request.keep_graph:
            self._begun[request.microbatch] = replace(entered, hidden=NOTHING, prefix=None)
            self._shapes[request.microbatch] = request.hidden.shape
        number, self._asked_forward = self._asked_forward, self._asked_forward + 1
        passed = self._stages[0].lift(Passed(tensor=entered.hidden))
        left = list[P]()
        bare = replace(entered, hidden=NOTHING)
        prefixes = self._prefixes(entered.prefix)
        for at, session in enumerate(self._sessions):
            own = replace(bare, prefix=prefixes[at])
            if not self._has_adapter[at] and self._calls is not None:
                own = replace(own, adapter=OWN_ADAPTER)
            passed = session.forward(number, own, passed)
            left.append(passed)
        rows, tokens = request.hidden.shape[:2]

        def made(last: Passed) -> Reply:
            self._forwards += 1
            self._tokens += rows * tokens
            if last.tensor is None:
                raise TypeError("a forward pass yields hidden states")
            return self._exit.outgoing("h2", last.tensor, bare)

        def retracted(error: BaseException) -> "Future[Any]":
            retracting = self._retract("forward", number, request.microbatch)
            if request.cache is None:
                return retracting
            landing = [at.land(one) for at, one in zip(self._stages, left, strict=True)]

            def judge(_: object) -> None:
                if any(one.exception() is None for one in landing):
                    self._broken = error  # its cache has grown at some stages

            landed = gathered(landing)
            when_done(landed, judge)  # before those of whoever waits for it
            return gathered([landed, retracting])

        def forgotten() -> None:
            self._forget(request.microbatch)
            if self._last_microbatch == request.microbatch:
                self._last_microbatch = before

        return unless(then(self._stages[-1].land(passed), made), retracted, forgotten)

    def _backward(self, request: BackwardRequest) -> Future[Reply]:
        self._check_step(request.step)
        begun, shape = self._begun.get(request.microbatch), self._shapes.get(request.microbatch)
        if begun is None:
            raise SequenceError(
                f"microbatch {request.microbatch} has no activations here: it had no forward "
                "pass with gradients in this step, its backward pass was already made, or the "
                "adapter was written or restored since"
            )
        if request.grad.shape != shape:
            raise WireError(f"g2 is {tuple(request.grad.shape)}, expected {tuple(shape or ())}")
        if not math.isfinite(request.orthogonality_grad):
            raise WireError(f"orthogonality_grad is {request.orthogonality_grad}")
        if request.adapter_grad == "return":
            if self._calls is None:
                raise SequenceError("this session's trunk is frozen: its adapter has no gradient")
            self._calls.check_shared()
        elif request.adapter_grad == "hold":
            raise SequenceError("this session's gradients are not held by row")
        grad = self._exit.incoming("g2", request.grad, begun)
        self._begun.pop(request.microbatch)
        number, self._asked_backward = self._asked_backward, self._asked_backward + 1
        passed = self._stages[-1].lift(Passed(tensor=grad))
        sides: list[Future[StageBackwardReply]] = []
        for at in reversed(range(len(self._sessions))):
            own = replace(
                request,
                grad=NOTHING,
                wants_input_grad=at > 0 or request.wants_input_grad,
                adapter_grad=request.adapter_grad if self._has_adapter[at] else "drop",
            )
            passed, side = self._sessions[at].backward(number, own, passed)
            sides.insert(0, side)

        def made(ended: list[Any]) -> Reply:
            self._backwards += 1
            self._shapes.pop(request.microbatch, None)
            return self._reply(request, begun, ended[0].tensor, ended[1:])

        def retracted(error: BaseException) -> "Future[Any]":
            if sides[-1].exception() is None:
                self._broken = error  # the last stage has added its gradients
            else:
                self._begun[request.microbatch] = begun
            return self._retract("backward", number, request.microbatch)

        ended: list[Future[Any]] = [self._stages[0].land(passed), *sides]
        return unless(then(gathered(ended), made), retracted)

    def _reply(
        self,
        request: BackwardRequest,
        begun: ForwardRequest,
        grad: Tensor | None,
        sides: Sequence[StageBackwardReply],
    ) -> Reply:
        g1 = None if grad is None else self._entry.outgoing("g1", grad, begun)
        prefixes = [side.prefix_grad for side in sides if side.prefix_grad is not None]
        if prefixes:
            device = prefixes[0].device
            whole = torch.cat([part.to(device) for part in prefixes])
            return BackwardReply(
                grad=g1, prefix_grad=self._entry.outgoing(PREFIX_GRAD, whole, begun)
            )
        if request.adapter_grad == "return":
            grads = tuple(grad for side in sides for grad in side.adapter_grads)
            return BackwardReply(grad=g1, adapter_grads=grads)
        if request.adapter_grad != "measure":
            return g1
        norm = global_norm([norm for side in sides for norm in side.norms])
        largest = torch.tensor([side.largest for side in sides]).max()
        return BackwardReply(grad=g1, norm=float(norm), largest=float(largest))

    def _prefixes(self, prefix: Tensor | None) -> list[Tensor | None]:
        """Every stage's part of (2 L R, V, W): keys and values of one layer after the other."""
        if prefix is None:
            return [None for _ in self._stages]
        counts = [len(stage.layers) for stage in self._stages]
        each = len(prefix) // sum(counts)
        return [*prefix.split([count * each for count in counts])]

    def _answer(self, request: Request) -> Reply:
        match request:
            case StepRequest():
                return self._step(request)
            case AdapterCall():
                self._check_open()
                if self._calls is None:
                    raise SequenceError("this session's trunk is frozen: it has no adapter")
                with self._terms.in_turn:
                    answer = self._calls.answer(request)
                if request.action in ("write", "restore"):
                    self._forget_begun()
                return answer
            case Weigh():
                raise SequenceError("this session's gradients are not held by row")
            case Finish():
                return self._finish()
            case Release():
                self._forget(request.microbatch)
                self._all(request)
            case DropCache() | Discard():
                self._all(request)
        return None

    def _step(self, request: StepRequest) -> StepReply:
        """Have all stages take the step, each told the norms of the others; or none."""
        self._check_step(request.step)
        self._stepping.check(request)
        with self._terms.in_turn:
            try:
                begun = self._all(BeginStep(request=request))
            except TrunkError:
                self._all(UndoStep())
                raise
            own = tuple(norm for one in begun for norm in one.norms)
            norms = [*request.norms_before, *own, *request.norms_after]
            taking = [
                session.ask(TakeStep(request=request, norms=norms)) for session in self._sessions
            ]
            errors = [taken.exception() for taken in taking]
            error = next((one for one in errors if one is not None), None)
            if error is not None:
                self._all(UndoStep())
                raise error
        self._forget_begun()
        self._steps += 1
        return StepReply(norms=own)

    def _finish(self) -> SessionSummary:
        self._check_step(self._steps)
        left = self._all(FinishStage())
        self._queue = replace(left[0].queue, seconds=sum(one.queue.seconds for one in left))
        self._leave(left)
        summary = self.summary()
        self._record.finish(summary)
        self._close()
        return summary

    def _close(self) -> None:
        with self._closing:
            is_first, self._ended = not self._ended, True
        closing = [session.close() for session in self._sessions]
        self._forget_begun()
        if is_first:
            self._record.close()
            self._on_end()
        gathered(closing).result()

    def _all(self, request: StageRequest) -> list[Any]:
        return gathered([session.ask(request) for session in self._sessions]).result()

    def _retract(
        self, kind: Literal["forward", "backward"], number: int, microbatch: int
    ) -> "Future[Any]":
        call = Retract(kind=kind, number=number, microbatch=microbatch)
        return gathered([session.ask(call) for session in self._sessions])

    def _forget(self, microbatch: int) -> None:
        self._begun.pop(microbatch, None)
        self._shapes.pop(microbatch, None)

    def _forget_begun(self) -> None:
        self._begun.clear()
        self._shapes.clear()

    def _check_open(self) -> None:
        if self._ended:
            raise SequenceError("the session has ended")
        if self._broken is not None:
            raise SequenceError(
                "a pass has failed at one stage of the trunk that others had made: open a new "
                "session"
            ) from self._broken

    def _check_step(self, step: int) -> None:
        self._check_open()
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")
