"""A trunk backend without a model: h2 = 3 h1 + 1, with everything that happens written down."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flower_split.errors import SequenceError
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
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

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "AffineSession":
        self.note("open")
        self.specs.append(spec)
        self.tickets.append(ticket)
        return AffineSession(self)

    def note(self, name: str, number: int | None = None) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.append((name, number))
        self.trouble(name)

    def count(self, name: str) -> int:
        return sum(event == name for event, _ in self.events)


class AffineSession:
    resumed = ""

    def __init__(self, backend: AffineBackend) -> None:
        self._backend = backend
        self._kept: set[int] = set()
        self._steps = self._forwards = self._backwards = self._tokens = 0

    def forward(self, request: ForwardRequest) -> Tensor:
        self._backend.note("forward", request.microbatch)
        self._check_step(request.step)
        self._backend.requests.append(request)
        time.sleep(self._backend.delay)
        if request.keep_graph:
            self._kept.add(request.microbatch)
        self._forwards += 1
        self._tokens += request.hidden.shape[0] * request.hidden.shape[1]
        return request.hidden * 3 + 1

    def backward(self, request: BackwardRequest) -> Tensor | None:
        self._backend.note("backward", request.microbatch)
        self._check_step(request.step)
        if request.microbatch not in self._kept:
            raise SequenceError(f"microbatch {request.microbatch} has no activations here")
        self._backend.requests.append(request)
        self._kept.discard(request.microbatch)
        self._backwards += 1
        return request.grad * 3 if request.wants_input_grad else None

    def release(self, microbatch: int) -> None:
        self._backend.note("release", microbatch)
        self._kept.discard(microbatch)

    def drop_cache(self, cache_id: int) -> None:
        self._backend.note("drop_cache", cache_id)

    def step(self, request: StepRequest) -> StepReply:
        self._backend.note("step", request.step)
        self._check_step(request.step)
        self._steps += 1
        return StepReply(norms=(request.learning_rate, *request.norms_before, *request.norms_after))

    def finish(self) -> SessionSummary:
        self._backend.note("finish")
        return SessionSummary(
            steps=self._steps,
            forwards=self._forwards,
            backwards=self._backwards,
            tokens=self._tokens,
        )

    def close(self) -> None:
        self._backend.note("close")

    def _check_step(self, step: int) -> None:
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")
