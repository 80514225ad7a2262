"""Replies as frames: what the trunk answers, encoded at its end and checked at the silo's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from flower_split.errors import SequenceError, WireError
from flower_split.optimization.clipping import checked_norms
from flower_split.privacy.clipping import checked_squared_norms
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import Announced, TensorRule, check_header
from flower_split.serialization.tensors import Outgoing, TensorAssembler, encode_tensor, frames
from flower_split.transport.grpc.adapter_frames import (
    adapter_reply,
    as_matrix,
    check_grads,
    check_number,
    check_reply,
    held_tensors,
)
from flower_split.transport.messages import (
    PREFIX_GRAD,
    AdapterCall,
    AdapterReply,
    Answerable,
    BackwardReply,
    BackwardRequest,
    Finish,
    ForwardReply,
    ForwardRequest,
    QueueUse,
    Reply,
    SessionLimits,
    SessionSummary,
    StepReply,
    StepRequest,
    WireBytes,
)
from flower_split.transport.rules import ADAPTER_DOWN, HopRules


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedReply:
    """A reply's head frame and its encoded tensors."""

    head: pb.ServerFrame
    tensors: tuple[Outgoing, ...] = ()

    def frames(self) -> Iterator[pb.ServerFrame]:
        """Everything to be sent, in order; once more at every call."""
        head = pb.ServerFrame()
        head.CopyFrom(self.head)  # which chunks are put into
        return frames(head, self.tensors)


def encode_reply(request: Answerable, reply: Reply, rules: HopRules) -> EncodedReply:
    """The frames that answer `request`.

    Raises:
        WireError: a tensor holds values that its codec does not carry.
    """
    match request, reply:
        case ForwardRequest(), Tensor():
            tensors = (encode_tensor(reply, rules["h2"]),)
            forward = pb.ForwardReply(microbatch=request.microbatch, tensors=[tensors[0].header])
            return EncodedReply(head=pb.ServerFrame(forward=forward), tensors=tensors)
        case ForwardRequest(), ForwardReply():
            tensors = (encode_tensor(reply.hidden, rules["h2"]),)
            forward = pb.ForwardReply(
                microbatch=request.microbatch,
                tensors=[tensors[0].header],
                orthogonality=reply.orthogonality,
            )
            return EncodedReply(head=pb.ServerFrame(forward=forward), tensors=tensors)
        case BackwardRequest(), Tensor() | None:
            grads = () if reply is None else (encode_tensor(reply, rules["g1"]),)
            backward = pb.BackwardReply(
                microbatch=request.microbatch, tensors=[grad.header for grad in grads]
            )
            return EncodedReply(head=pb.ServerFrame(backward=backward), tensors=grads)
        case BackwardRequest(), BackwardReply():
            g1 = () if reply.grad is None else (encode_tensor(reply.grad, rules["g1"]),)
            if reply.prefix_grad is not None:
                g1 = (*g1, encode_tensor(reply.prefix_grad, rules[PREFIX_GRAD]))
            own = (encode_tensor(as_matrix(grad), ADAPTER_DOWN) for grad in reply.adapter_grads)
            grads = (*g1, *own)
            backward = pb.BackwardReply(
                microbatch=request.microbatch,
                tensors=[grad.header for grad in grads],
                norm=reply.norm,
                largest=reply.largest,
                squared_norms=reply.squared_norms,
            )
            return EncodedReply(head=pb.ServerFrame(backward=backward), tensors=grads)
        case AdapterCall(), AdapterReply():
            held = tuple(encode_tensor(as_matrix(t), ADAPTER_DOWN) for t in reply.tensors)
            message = adapter_reply(request, reply, [tensor.header for tensor in held])
            return EncodedReply(head=pb.ServerFrame(adapter=message), tensors=held)
        case StepRequest(), StepReply():
            step = pb.StepReply(step=request.step, norms=reply.norms)
            return EncodedReply(head=pb.ServerFrame(step=step))
        case Finish(), SessionSummary():
            summary = pb.Summary(
                steps=reply.steps,
                forwards=reply.forwards,
                backwards=reply.backwards,
                tokens=reply.tokens,
                wire_bytes=pb.WireBytes(**reply.wire_bytes),
                queue=pb.QueueUse(**asdict(reply.queue)),
            )
            return EncodedReply(head=pb.ServerFrame(summary=summary))
        case _:
            raise TypeError(f"{type(reply).__name__} does not answer {type(request).__name__}")


MOST_NORMS = 1 << 16
"""Gradient norms of a step: one for each adapter tensor of the trunk."""


class ReplyReader:
    """Turns the frames that answer one request into its reply."""

    def __init__(
        self, request: Answerable, rules: HopRules, limits: SessionLimits | None = None
    ) -> None:
        self._request = request
        self._rules = rules
        self._limits = limits or SessionLimits()
        self._head: pb.ServerFrame | None = None
        self._assembler = TensorAssembler(())

    @property
    def announced(self) -> Sequence[Announced]:
        """The tensors that the reply announced."""
        return self._assembler.announced

    def feed(self, frame: pb.ServerFrame) -> bool:
        """Take the next frame; true once the reply is complete.

        Raises:
            SequenceError: the frame does not belong to this reply.
            WireError: the frame failed a check; nothing was allocated for it.
        """
        kind = frame.WhichOneof("frame")
        if self._head is None:
            self._assembler = TensorAssembler(self._check(frame))
            self._head = frame
        elif kind is not None:
            raise SequenceError(f"frame {kind}, expected the chunks of the reply before it")
        for chunk in frame.chunks:
            self._assembler.add(chunk)
        return self._assembler.complete

    def reply(self) -> Reply:
        """The complete reply, its checksum and values checked.

        Raises:
            WireError: the tensor is not what it should be.
        """
        tensors = self._assembler.tensors()
        head = self._head
        if head is None:
            raise SequenceError("a reply was asked for before it arrived")
        match self._request:
            case BackwardRequest() as request if request.wants_more:
                grad = tensors.pop(0) if request.wants_input_grad else None
                prefix_grad = tensors.pop(0) if request.prefix_shape else None
                return BackwardReply(
                    grad=grad,
                    prefix_grad=prefix_grad,
                    norm=head.backward.norm,
                    largest=head.backward.largest,
                    adapter_grads=tuple(tensors),
                    squared_norms=tuple(head.backward.squared_norms),
                )
            case ForwardRequest() if head.forward.HasField("orthogonality"):
                told = head.forward.orthogonality
                return ForwardReply(hidden=tensors[0], orthogonality=told)
            case ForwardRequest() | BackwardRequest():
                return tensors[0] if tensors else None
            case AdapterCall():
                return held_tensors(head.adapter, tensors)
            case StepRequest():
                return StepReply(norms=tuple(head.step.norms))
            case Finish():
                summary = head.summary
                return SessionSummary(
                    steps=summary.steps,
                    forwards=summary.forwards,
                    backwards=summary.backwards,
                    tokens=summary.tokens,
                    wire_bytes=WireBytes(
                        **{name: getattr(summary.wire_bytes, name) for name in WireBytes()}
                    ),
                    queue=_queue_use(summary.queue),
                )

    def _check(self, frame: pb.ServerFrame) -> Sequence[Announced]:
        kind = frame.WhichOneof("frame")
        match self._request, kind:
            case ForwardRequest() as request, "forward":
                _check_number("microbatch", frame.forward.microbatch, request.microbatch)
                check_number("orthogonality", frame.forward.orthogonality)
                h2 = (self._rules["h2"], request.hidden.shape)
                return _check_tensors(frame.forward.tensors, [h2])
            case BackwardRequest() as request, "backward":
                _check_number("microbatch", frame.backward.microbatch, request.microbatch)
                rules = list[Expected]()
                if request.wants_input_grad:
                    rules.append((self._rules["g1"], request.grad.shape))
                if request.prefix_shape:
                    rules.append((self._rules[PREFIX_GRAD], request.prefix_shape))
                headers, more = list(frame.backward.tensors), list[pb.TensorHeader]()
                if request.adapter_grad == "return":
                    headers, more = headers[: len(rules)], headers[len(rules) :]
                checked_norms((frame.backward.norm, frame.backward.largest))
                rows = request.grad.shape[0] if request.adapter_grad == "hold" else 0
                checked_squared_norms(frame.backward.squared_norms, rows)
                return [
                    *_check_tensors(headers, rules),
                    *check_grads(more, self._limits),
                ]
            case AdapterCall() as request, "adapter":
                return check_reply(request, frame.adapter, self._limits)
            case StepRequest() as request, "step":
                _check_number("step", frame.step.step, request.step)
                if len(frame.step.norms) > MOST_NORMS:
                    raise WireError(
                        f"{len(frame.step.norms)} gradient norms, expected at most {MOST_NORMS}"
                    )
                checked_norms(frame.step.norms)
                return ()
            case Finish(), "summary":
                return ()
            case _:
                raise SequenceError(
                    f"frame {kind}, expected the answer to {type(self._request).__name__}"
                )


def _queue_use(queue: pb.QueueUse) -> QueueUse:
    if not (math.isfinite(queue.seconds) and queue.seconds >= 0):
        raise WireError(f"a summary with {queue.seconds} seconds of waiting, expected 0 or more")
    return QueueUse(
        seconds=queue.seconds,
        length=queue.length,
        rows=queue.rows,
        rows_beside=queue.rows_beside,
    )


def _check_number(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise SequenceError(f"a reply to {name} {got}, expected {expected}")


Expected = tuple[TensorRule, Sequence[int]]
"""What a tensor of a reply must look like, and its shape."""


def _check_tensors(
    headers: Sequence[pb.TensorHeader], expected: Sequence[Expected]
) -> Sequence[Announced]:
    if len(headers) != len(expected):
        raise WireError(f"a reply with {len(headers)} tensors, expected {len(expected)}")
    announced = list[Announced]()
    for header, (rule, shape) in zip(headers, expected, strict=True):
        tensor = check_header(header, rule)
        if tensor.shape != tuple(shape):
            raise WireError(f"{rule.name}: {tensor.shape}, expected {tuple(shape)}")
        announced.append(tensor)
    return announced
