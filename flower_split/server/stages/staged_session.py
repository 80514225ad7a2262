"""One session's part at one stage: a session on some of the layers, whose neighbours it feeds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flower_split.segments.randomness import DRAWING, LayerDraws
from flower_split.server.compute.batch import Microbatch
from flower_split.server.session import TrunkSession
from flower_split.server.stages.messages import (
    BeginStep,
    CopyAdapter,
    FinishStage,
    LoadMoments,
    Passed,
    ReadAdapter,
    ReadHeld,
    ReadMoments,
    Retract,
    StageBackwardReply,
    StageCall,
    StageForward,
    StageOutcome,
    TakeStep,
    UndoStep,
    WriteAdapter,
)
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    StepReply,
)


class StagedSession(TrunkSession):
    """`TrunkSession` that answers its chain, and not a silo.

    `ForwardRequest` is answered by `Passed`, `BackwardRequest` by `StageBackwardReply`, and what a
    chain asks as `messages` says.
    """

    _undo: Callable[[], None] | None = None

    def _check_follows(self, request: ForwardRequest) -> None:
        """The chain has: a pass that another stage could not make is made anew."""

    def _check_returning(self) -> None:
        """The chain has."""

    def _microbatch(self, request: ForwardRequest, memory: int) -> Microbatch:
        self._undo = None  # the same
        draws = LayerDraws(before=request.drawn if isinstance(request, StageForward) else None)
        return Microbatch(session=self._context, request=request, memory=memory, draws=draws)

    def _forward_reply(self, microbatch: Microbatch, hidden: Tensor) -> Any:
        drawn = None if microbatch.draws is None else microbatch.draws.after
        return Passed(tensor=hidden, drawn=drawn)

    def _backward_reply(
        self, request: BackwardRequest, g1: Tensor | None, gradients: Sequence[Tensor | None]
    ) -> Any:
        if self._slot is not None and request.adapter_grad == "return":
            return StageBackwardReply(grad=g1, adapter_grads=self._slot.of_all(gradients))
        if self._slot is None or request.adapter_grad != "measure":
            return StageBackwardReply(grad=g1)
        norms, largest = self._slot.measure_each()
        return StageBackwardReply(grad=g1, norms=norms, largest=largest)

    def _answer(self, request: Any) -> Any:
        if isinstance(request, StageCall):
            self._check_open()
            return self._of_stage(request)
        return super()._answer(request)

    def _of_stage(self, call: StageCall) -> Any:
        match call:
            case BeginStep():
                self._undo = None  # every stage has taken the step before
                self._check_step(call.request.step)
                return StepReply(norms=self._stepping.begin(call.request))
            case TakeStep():
                self._check_step(call.request.step)
                undo = self._stepping.take(call.request, call.norms)
                self._undo = partial(self._take_back, undo, {**self._pending})
                self._note_step()
            case UndoStep():
                self._stepping.take_back()
                if self._undo is not None:
                    self._undo()
                self._undo = None
            case Retract():
                if call.kind == "forward":
                    self._free(call.microbatch)
            case FinishStage():
                return self._left()
            case _:
                return self._of_adapter(call)
        return None

    def _of_adapter(self, call: StageCall) -> Any:
        slot = self._slot
        if slot is None:
            return () if isinstance(call, ReadHeld) else {}
        match call:
            case ReadHeld():
                return slot.held
            case ReadAdapter():
                return slot.state()
            case ReadMoments():
                return slot.all_moments()
            case CopyAdapter():
                with DRAWING:  # as for a new adapter
                    slot.copy(call.name)
            case WriteAdapter():
                slot.write(call.state)
                self._free_pending()  # activations of other values than the adapter has now
            case LoadMoments():
                _load(slot, call)
        return None

    def _take_back(self, undo: Callable[[], None], pending: dict[int, Microbatch]) -> None:
        undo()
        self._pending.update(pending)  # without their graphs: they are computed once more
        self._steps -= 1

    def _left(self) -> StageOutcome:
        self._record.finish(self.summary())
        outcome, proposal = self._record.collect(), self._record.accept()
        self._close()
        return StageOutcome(
            tensors={} if outcome is None else outcome.tensors,
            proposal=proposal,
            queue=self._waited,
        )


def _load(slot: AdapterSlot, call: LoadMoments) -> None:
    if call.only_check:
        slot.check_moments(call.moments)
    else:
        slot.load_moments(call.moments)
