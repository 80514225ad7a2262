"""A trunk backend without a model: h2 = 3 h1 + 1, with everything that happens written down."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flower_split.errors import SequenceError
from flower_split.transport.base import BackendSession
from flower_split.transport.messages import (
    BackwardRequest,
    DropCache,
    Finish,
    ForwardRequest,
    Release,
    Reply,
    Request,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
)


def spec(**changes: object) -> SessionSpec:
    fields: dict[str, object] = {
        "purpose": "train",
        "fingerprint": "00ff",
        "num_layers": 6,
        "bottom_layers": 2,
        "top_layers": 1,
        "dtype": "float32",
        "trunk_adapters": "federated",
        "adapter": '{"r":4}',
    }
    return SessionSpec(**{**fields, **changes})  # type: ignore[arg-type]


def forward(microbatch: int, *shape: int, step: int = 0, **changes: object) -> ForwardRequest:
    generator = torch.Generator().manual_seed(microbatch)
    hidden = torch.randn(shape or (2, 4, 8), generator=generator)
    fields: dict[str, object] = {"keep_graph": True, "hidden": hidden, **changes}
    return ForwardRequest(step=step, microbatch=microbatch, **fields)  # type: ignore[arg-type]


def backward(microbatch: int, *shape: int, step: int = 0, **changes: object) -> BackwardRequest:
    generator = torch.Generator().manual_seed(microbatch + 1000)
    grad = torch.randn(shape or (2, 4, 8), generator=generator)
    return BackwardRequest(step=step, microbatch=microbatch, grad=grad, **changes)  # type: ignore[arg-type]


@dataclass
class AffineBackend:
    """Opens `AffineSession`s; `events` has every call as (name, number or None)."""

    delay: float = 0.0
    trouble: Callable[[str], None] = lambda name: None
    events: list[tuple[str, int | None]] = field(default_factory=list)
    tickets: list[Ticket | None] = field(default_factory=list)
    specs: list[SessionSpec] = field(default_factory=list)
    requests: list[ForwardRequest | BackwardRequest] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._open = 0

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        with self._lock:
            self._open += 1
            self._worker = self._worker or ThreadPoolExecutor(1, "trunk-compute")
            opening = self._worker.submit(self._opened, spec, ticket)
        opening.add_done_callback(self._note_failure)
        return opening

    def note(self, name: str, number: int | None = None) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.append((name, number))
        self.trouble(name)

    def count(self, name: str) -> int:
        return sum(event == name for event, _ in self.events)

    def do(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Do something in the backend's thread, which lives while sessions are open."""
        with self._lock:
            worker = self._worker or ThreadPoolExecutor(1, "trunk-compute")
            try:
                done = worker.submit(work, *arguments)
            except RuntimeError:  # the interpreter exits, and such threads have ended
                done = Future()
                done.set_result(work(*arguments))
            if self._worker is None:
                worker.shutdown(wait=False)
        return done

    def leave(self) -> None:
        with self._lock:
            self._open -= 1
            if not self._open and self._worker is not None:
                self._worker.shutdown(wait=False)
                self._worker = None

    def _opened(self, spec: SessionSpec, ticket: Ticket | None) -> "AffineSession":
        self.note("open")
        self.specs.append(spec)
        self.tickets.append(ticket)
        return AffineSession(self)

    def _note_failure(self, opening: "Future[BackendSession]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            self.leave()


class AffineSession:
    resumed = ""

    def __init__(self, backend: AffineBackend) -> None:
        self._backend = backend
        self._kept: set[int] = set()
        self._steps = self._forwards = self._backwards = self._tokens = 0
        self._left = False

    depth = 1

    def submit(self, request: Request) -> "Future[Reply]":
        return self._backend.do(self._answer, request)

    def close(self) -> "Future[None]":
        done = self._backend.do(self._backend.note, "close")
        if not self._left:
            self._left = True
            self._backend.leave()
        return done

    def _answer(self, request: Request) -> Reply:
        match request:
            case ForwardRequest():
                return self._forward(request)
            case BackwardRequest():
                return self._backward(request)
            case StepRequest():
                self._backend.note("step", request.step)
                self._check_step(request.step)
                self._steps += 1
                norms = (request.learning_rate, *request.norms_before, *request.norms_after)
                return StepReply(norms=norms)
            case Finish():
                self._backend.note("finish")
                return SessionSummary(
                    steps=self._steps,
                    forwards=self._forwards,
                    backwards=self._backwards,
                    tokens=self._tokens,
                )
            case Release():
                self._backend.note("release", request.microbatch)
                self._kept.discard(request.microbatch)
            case DropCache():
                self._backend.note("drop_cache", request.cache_id)
        return None

    def _forward(self, request: ForwardRequest) -> Tensor:
        self._backend.note("forward", request.microbatch)
        self._check_step(request.step)
        self._backend.requests.append(request)
        time.sleep(self._backend.delay)
        if request.keep_graph:
            self._kept.add(request.microbatch)
        self._forwards += 1
        self._tokens += request.hidden.shape[0] * request.hidden.shape[1]
        return request.hidden * 3 + 1

    def _backward(self, request: BackwardRequest) -> Tensor | None:
        self._backend.note("backward", request.microbatch)
        self._check_step(request.step)
        if request.microbatch not in self._kept:
            raise SequenceError(f"microbatch {request.microbatch} has no activations here")
        self._backend.requests.append(request)
        self._kept.discard(request.microbatch)
        self._backwards += 1
        return request.grad * 3 if request.wants_input_grad else None

    def _check_step(self, step: int) -> None:
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")
