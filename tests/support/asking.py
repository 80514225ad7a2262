"""Asking a session and waiting for its answer, as a silo with nothing else to do."""

from typing import Any

from torch import Tensor

from flower_split.server.engine import TrunkEngine
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


class Asking:
    """A session of a backend, whose calls return when they are answered."""

    def __init__(self, session: BackendSession, engine: TrunkEngine) -> None:
        self.session = session
        self.engine = engine

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
        return answer

    def release(self, microbatch: int) -> None:
        self.ask(Release(microbatch=microbatch))

    def drop_cache(self, cache_id: int) -> None:
        self.ask(DropCache(cache_id=cache_id))

    def close(self) -> None:
        self.session.close().result(SECONDS)


def opened(engine: TrunkEngine, spec: SessionSpec, ticket: Ticket | None) -> Asking:
    """A session of `engine`, or the error with which it refused it."""
    return Asking(engine.open(spec, ticket).result(SECONDS), engine)
