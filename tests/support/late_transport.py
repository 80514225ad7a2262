"""A trunk in this process whose answers come late, and not in the order of the questions."""

import random
import threading
import time
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from flower_split.transport.base import Transport
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    BackwardReply,
    BackwardRequest,
    ForwardRequest,
    SessionSummary,
    StepReply,
    StepRequest,
    WireBytes,
)


class LateTransport(Transport):
    """Asks `inner` at once and in order, and hands out its answers at random times.

    Args:
        inner: A transport whose futures are done when it returns them; it is not closed.
        seed: Of the times.
        pause: Longest time between two answers, in seconds.
    """

    def __init__(self, inner: Transport, seed: int = 0, pause: float = 0.001) -> None:
        self.inner = inner
        self.spec, self.limits = inner.spec, inner.limits
        self.asked: list[tuple[str, int]] = []
        self.released: list[int] = []
        self._random = random.Random(seed)
        self._pause = pause
        self._answers: list[tuple[Future[Any], Future[Any]]] = []
        self._there = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._hand_out, name="late", daemon=True)
        self._thread.start()

    def forward(self, request: ForwardRequest) -> Future[Tensor]:
        self.asked.append(("forward", request.microbatch))
        return self._later(self.inner.forward(request))

    def backward(self, request: BackwardRequest) -> Future[Tensor | BackwardReply | None]:
        self.asked.append(("backward", request.microbatch))
        return self._later(self.inner.backward(request))

    def release(self, microbatch: int) -> None:
        self.released.append(microbatch)
        self.inner.release(microbatch)

    def drop_cache(self, cache_id: int) -> None:
        self.inner.drop_cache(cache_id)

    def step(self, request: StepRequest) -> Future[StepReply]:
        self.asked.append(("step", request.step))
        return self._later(self.inner.step(request))

    def discard(self, *, zeros: bool) -> None:
        self.inner.discard(zeros=zeros)

    def weigh(self, microbatch: int, factors: tuple[float, ...]) -> None:
        self.inner.weigh(microbatch, factors)

    def adapter(self, call: AdapterCall) -> Future[AdapterReply]:
        return self._later(self.inner.adapter(call))

    def finish(self) -> SessionSummary:
        return self.inner.finish()

    def close(self) -> None:
        with self._there:
            self._closed = True
            self._there.notify()
        self._thread.join()

    @property
    def wire_bytes(self) -> WireBytes:
        return self.inner.wire_bytes

    def _later(self, answer: Future[Any]) -> Future[Any]:
        late: Future[Any] = Future()
        with self._there:
            self._answers.append((answer, late))
            self._there.notify()
        return late

    def _hand_out(self) -> None:
        while True:
            with self._there:
                self._there.wait_for(lambda: self._answers or self._closed)
                if self._closed:
                    return
            time.sleep(self._random.random() * self._pause)
            with self._there:
                answer, late = self._answers.pop(self._random.randrange(len(self._answers)))
            error = answer.exception()
            if error is None:
                late.set_result(answer.result())
            else:
                late.set_exception(error)
