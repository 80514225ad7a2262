"""The in-process transport: a silo and the trunk in one process, no socket.

Tensors pass through the session's codecs, so that results equal those over gRPC to the bit.
"""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from flower_split.compression.table import round_trip
from flower_split.errors import SequenceError, TrunkError
from flower_split.serialization.headers import TensorRule
from flower_split.transport.base import Transport, TrunkBackend
from flower_split.transport.messages import (
    PREFIX,
    PREFIX_GRAD,
    AdapterCall,
    AdapterReply,
    BackwardReply,
    BackwardRequest,
    Discard,
    DropCache,
    Finish,
    ForwardReply,
    ForwardRequest,
    Release,
    Request,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
    Weigh,
    WireBytes,
)
from flower_split.transport.meters import ByteMeter
from flower_split.transport.rules import (
    ADAPTER_DOWN,
    ADAPTER_UP,
    ATTENTION_MASK,
    POSITION_IDS,
    HopRules,
)

Answer = TypeVar("Answer")


class InProcessTransport(Transport):
    """Asks a backend directly; every future is complete when it is returned.

    Args:
        backend: What hosts the session.
        spec: What the silo brings to the handshake.
        ticket: Who the silo is, where the backend asks.

    Raises:
        HandshakeError: the backend was set up differently.
    """

    def __init__(
        self, backend: TrunkBackend, spec: SessionSpec, ticket: Ticket | None = None
    ) -> None:
        self.spec = spec
        self._rules = HopRules(spec)
        self._session = backend.open(spec, ticket).result()
        # runs when the transport is forgotten, as that of a transport over gRPC does
        self._finalizer = weakref.finalize(self, self._session.close)
        self._finalizer.atexit = False
        self._meter = ByteMeter()
        self.resumed = self._session.resumed
        self._failure: TrunkError | None = None

    def forward(self, request: ForwardRequest) -> Future[Tensor | ForwardReply]:
        """h1 -> h2."""

        def compute() -> Tensor | ForwardReply:
            hidden = self._carry("h1", request.hidden)
            for rule, given in (
                (ATTENTION_MASK, request.attention_mask),
                (POSITION_IDS, request.position_ids),
            ):
                if given is not None:
                    self._meter.add(rule.role, rule.codec.encoded_bytes(given.shape))
            prefix = None if request.prefix is None else self._carry(PREFIX, request.prefix)
            # the codec may have rounded them
            arrived = replace(request, hidden=hidden, prefix=prefix)
            answer = self._session.submit(arrived).result()
            if isinstance(answer, ForwardReply):
                return replace(answer, hidden=self._carry("h2", answer.hidden))
            if not isinstance(answer, Tensor):
                raise TypeError(f"{type(answer).__name__} does not answer a forward pass")
            return self._carry("h2", answer)

        return self._answer(compute)

    def backward(self, request: BackwardRequest) -> Future[Tensor | BackwardReply | None]:
        """g2 -> g1."""

        def compute() -> Tensor | BackwardReply | None:
            arrived = replace(request, grad=self._carry("g2", request.grad))
            answer = self._session.submit(arrived).result()
            if isinstance(answer, BackwardReply):
                g1 = None if answer.grad is None else self._carry("g1", answer.grad)
                given = answer.prefix_grad
                own = None if given is None else self._carry(PREFIX_GRAD, given)
                self._count(ADAPTER_DOWN, answer.adapter_grads)
                return replace(answer, grad=g1, prefix_grad=own)
            return self._carry("g1", answer) if isinstance(answer, Tensor) else None

        return self._answer(compute)

    def release(self, microbatch: int) -> None:
        """Free a microbatch that gets no backward pass."""
        self._session.submit(Release(microbatch=microbatch))

    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache."""
        self._session.submit(DropCache(cache_id=cache_id))

    def step(self, request: StepRequest) -> Future[StepReply]:
        """One optimizer step on both sides."""
        return self._answer(lambda: self._ask(request, StepReply))

    def discard(self, *, zeros: bool) -> None:
        """Forget the adapter's gradient of the step so far."""
        self._session.submit(Discard(zeros=zeros)).result()

    def weigh(self, microbatch: int, factors: tuple[float, ...]) -> None:
        """Add the rows' gradients that are held of a microbatch to that of the step."""
        request = Weigh(microbatch=microbatch, factors=factors)
        self._answer(lambda: self._session.submit(request).result())

    def adapter(self, call: AdapterCall) -> Future[AdapterReply]:
        """Do something with the trunk's part of the session's adapter."""

        def compute() -> AdapterReply:
            self._count(ADAPTER_UP, call.tensors)
            reply = self._ask(call, AdapterReply)
            self._count(ADAPTER_DOWN, reply.tensors)
            return reply

        return self._answer(compute)

    def finish(self) -> SessionSummary:
        """Declare the session complete."""
        summary = self._answer(lambda: self._ask(Finish(), SessionSummary)).result()
        self._failure = SequenceError("the session has ended")
        return replace(summary, wire_bytes=self._meter.read())

    def close(self) -> None:
        """Leave, complete or not."""
        self._finalizer.detach()
        self._session.close().result()
        self._failure = self._failure or SequenceError("the session has ended")

    @property
    def wire_bytes(self) -> WireBytes:
        """Bytes of tensor payload sent and received so far, as they would be encoded."""
        return self._meter.read()

    def _answer(self, compute: Callable[[], Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()
        try:
            if self._failure is not None:
                raise self._failure
            future.set_result(compute())
        except TrunkError as error:
            self._failure = error
            future.set_exception(error)
        return future

    def _ask(self, request: Request, kind: type[Answer]) -> Answer:
        """The reply to `request`. It is waited for, so that silo and trunk, which draw from the
        random numbers of one process, never do so at once."""
        reply = self._session.submit(request).result()
        if not isinstance(reply, kind):
            raise TypeError(f"{type(reply).__name__} does not answer {type(request).__name__}")
        return reply

    def _count(self, rule: TensorRule, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._meter.add(rule.role, rule.codec.encoded_bytes(tensor.shape))

    def _carry(self, hop: str, tensor: Tensor) -> Tensor:
        rule = self._rules[hop]
        self._meter.add(rule.role, rule.codec.encoded_bytes(tensor.shape))
        return round_trip(tensor.detach(), rule.codec, hop)
