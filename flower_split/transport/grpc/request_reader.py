"""Requests from frames: the trunk's end, where everything that a silo sent is checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flower_split.errors import SequenceError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced, check_header
from flower_split.serialization.receiving import TensorAssembler
from flower_split.transport.bounds import check_context, check_hidden
from flower_split.transport.grpc.requests import EDIT_KINDS
from flower_split.transport.messages import (
    BackwardRequest,
    CacheEdit,
    CacheUse,
    DropCache,
    EditKind,
    Finish,
    ForwardRequest,
    Release,
    Request,
    SessionLimits,
    SessionSpec,
    StepRequest,
)
from flower_split.transport.rules import ATTENTION_MASK, POSITION_IDS, HopRules

_EDIT_NAMES: dict[int, EditKind] = {int(number): name for name, number in EDIT_KINDS.items()}
# OPT numbers a padded token -1
_POSITION_RANGE = (-1, 2**31 - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingRequest:
    """A request whose every byte has arrived, not yet decoded."""

    head: pb.ClientFrame
    assembler: TensorAssembler

    @property
    def num_bytes(self) -> int:
        """Bytes of tensor payload."""
        return self.assembler.num_bytes

    def build(self) -> Request:
        """The request, its checksums and values checked.

        Raises:
            WireError: a tensor or a number is not what it should be.
        """
        tensors = self.assembler.tensors()
        match self.head.WhichOneof("frame"):
            case "forward":
                return _forward(self.head.forward, tensors)
            case "backward":
                backward = self.head.backward
                return BackwardRequest(
                    step=backward.step,
                    microbatch=backward.microbatch,
                    grad=tensors[0],
                    wants_input_grad=backward.wants_input_grad,
                )
            case "step":
                step = self.head.step
                return StepRequest(
                    step=step.step,
                    learning_rate=step.learning_rate,
                    norms_before=tuple(step.norms_before),
                    norms_after=tuple(step.norms_after),
                )
            case "release":
                return Release(microbatch=self.head.release.microbatch)
            case "drop_cache":
                return DropCache(cache_id=self.head.drop_cache.cache_id)
            case _:
                return Finish()


class RequestReader:
    """Turns the frames of one session, after its Hello, into requests."""

    def __init__(
        self, spec: SessionSpec, limits: SessionLimits, hidden_size: int | None = None
    ) -> None:
        self._rules = HopRules(spec)
        self._limits = limits
        self._hidden_size = hidden_size
        self._max_learning_rate = spec.optimizer.max_learning_rate
        self._pending: PendingRequest | None = None

    def feed(self, frame: pb.ClientFrame) -> PendingRequest | None:
        """Take the next frame; a request once all of its frames are there.

        Raises:
            SequenceError: the frame is not one that may come now.
            WireError: the frame failed a check; nothing was allocated for it.
            TrunkBusyError: more tokens than the trunk takes.
        """
        kind = frame.WhichOneof("frame")
        if kind is None and not frame.chunks:
            raise WireError("a frame of an unknown kind")
        if self._pending is None:
            if kind is None:
                raise SequenceError("chunks, expected a request that announces their tensors")
            announced = self._check(frame, kind)
            self._pending = PendingRequest(head=frame, assembler=TensorAssembler(announced))
        elif kind is not None:
            raise SequenceError(f"frame {kind}, expected the chunks of the request before it")
        for chunk in frame.chunks:
            self._pending.assembler.add(chunk)
        if not self._pending.assembler.complete:
            return None
        done, self._pending = self._pending, None
        return done

    def _check(self, frame: pb.ClientFrame, kind: str) -> Sequence[Announced]:
        match kind:
            case "forward":
                return self._check_forward(frame.forward)
            case "backward":
                headers = frame.backward.tensors
                if len(headers) != 1:
                    raise WireError(f"backward with {len(headers)} tensors, expected g2 alone")
                return [self._check_size(check_header(headers[0], self._rules.g2))]
            case "step":
                self._check_step(frame.step)
                return ()
            case "release" | "drop_cache" | "finish":
                return ()
            case "hello":
                raise SequenceError("a second hello; a stream carries one session")
            case _:
                raise WireError("a frame of an unknown kind")

    def _check_forward(self, forward: pb.Forward) -> Sequence[Announced]:
        headers = list(forward.tensors)
        if not headers:
            raise WireError("forward without tensors, expected h1")
        hidden = self._check_size(check_header(headers.pop(0), self._rules.h1))
        announced = [hidden]
        mask = positions = None
        if headers and headers[0].role == ATTENTION_MASK.role:
            mask = check_header(headers.pop(0), ATTENTION_MASK)
            announced.append(mask)
        if headers:
            positions = check_header(headers.pop(0), POSITION_IDS)
            announced.append(positions)
        if headers:
            raise WireError("forward with more tensors than h1, attention_mask and position_ids")
        check_context(
            hidden.shape,
            None if mask is None else mask.shape,
            None if positions is None else positions.shape,
            forward.cache.past_length if forward.HasField("cache") else 0,
            self._limits,
        )
        for edit in forward.cache.edits:
            if edit.kind not in _EDIT_NAMES:
                raise WireError(f"cache edit of unknown kind {edit.kind}")
        return announced

    def _check_size(self, tensor: Announced) -> Announced:
        check_hidden(tensor.rule.name, tensor.shape, self._limits, self._hidden_size)
        return tensor

    def _check_step(self, step: pb.Step) -> None:
        if not 0.0 <= step.learning_rate <= self._max_learning_rate:
            raise WireError(
                f"learning_rate {step.learning_rate}, expected 0 to {self._max_learning_rate}"
            )
        for norm in (*step.norms_before, *step.norms_after):
            if not (math.isfinite(norm) and norm >= 0.0):
                raise WireError(f"gradient norm {norm}, expected a finite number of at least 0")


def _forward(forward: pb.Forward, tensors: list[Tensor]) -> ForwardRequest:
    mask = positions = None
    for header, tensor in zip(forward.tensors, tensors, strict=True):
        if header.role == ATTENTION_MASK.role:
            mask = tensor
        elif header.role == POSITION_IDS.role:
            positions = tensor
    if positions is not None:
        low, high = _POSITION_RANGE
        if int(positions.min()) < low or int(positions.max()) > high:
            raise WireError(f"position_ids: values outside {low} to {high}")
    cache = None
    if forward.HasField("cache"):
        edits = tuple(
            CacheEdit(kind=_EDIT_NAMES[edit.kind], values=tuple(edit.values))
            for edit in forward.cache.edits
        )
        cache = CacheUse(
            cache_id=forward.cache.cache_id, past_length=forward.cache.past_length, edits=edits
        )
    return ForwardRequest(
        step=forward.step,
        microbatch=forward.microbatch,
        hidden=tensors[0],
        attention_mask=mask,
        position_ids=positions,
        keep_graph=forward.keep_graph,
        dropout=forward.dropout,
        cache=cache,
    )
