"""Asking a session and waiting for its answer, as a silo with nothing else to do."""

from typing import Any

from torch import Tensor

from flower_split.optimization.settings import OptimizerSettings
from flower_split.server.ticket_record import TicketRecord
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import (
    BackwardRequest,
    DropCache,
    Finish,
    ForwardRequest,
    Release,
    Request,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
)

SECONDS = 120.0
AS_GRADIENTS = OptimizerSettings(beta1=0.0)
"""AdamW whose first moment is the gradient of the last step, to the bit."""


class Asking:
    """A session of a backend, whose calls return when they are answered.

    Args:
        session: The session.
        engine: Its backend.
        spec: With which it was opened.
        ticket: With which it was opened, where it was.
        record: Of the ticket, where it was prepared.
    """

    def __init__(
        self,
        session: BackendSession,
        engine: Any,
        spec: SessionSpec,
        ticket: Ticket | None = None,
        record: TicketRecord | None = None,
    ) -> None:
        self.session = session
        self.engine = engine
        self.spec, self.ticket, self.record = spec, ticket, record
        self.summary = SessionSummary(steps=0, forwards=0, backwards=0, tokens=0)
        """What `finish` said."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def ask(self, request: Request) -> Any:
        return self.session.submit(request).result(SECONDS)

    def forward(self, request: ForwardRequest) -> Tensor:
        answer = self.ask(request)
        assert isinstance(answer, Tensor)
        return answer

    def backward(self, request: BackwardRequest) -> Tensor | None:
        answer = self.ask(request)
        assert answer is None or isinstance(answer, Tensor)
        return answer

    def step(self, request: StepRequest) -> StepReply:
        answer = self.ask(request)
        assert isinstance(answer, StepReply)
        return answer

    def finish(self) -> SessionSummary:
        answer = self.ask(Finish())
        assert isinstance(answer, SessionSummary)
        self.summary = answer
        return answer

    def release(self, microbatch: int) -> None:
        self.ask(Release(microbatch=microbatch))

    def drop_cache(self, cache_id: int) -> None:
        self.ask(DropCache(cache_id=cache_id))

    def close(self) -> None:
        self.session.close().result(SECONDS)


def opened(
    engine: Any,
    spec: SessionSpec,
    ticket: Ticket | None,
    record: TicketRecord | None = None,
) -> Asking:
    """A session of `engine`, or the error with which it refused it."""
    return Asking(engine.open(spec, ticket).result(SECONDS), engine, spec, ticket, record)
