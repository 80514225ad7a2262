"""The order of one session's passes at one stage: as they can be computed, one at a time."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from flower_split.server.stages.futures import running, settle, when_done

Start = Callable[[Any], "Future[Any]"]


class PassOrder:
    """Begins a pass when what it is given is there, and no other of the session is computed.

    Forward passes are given their hidden states in their order, because the stage before computes
    them in it, and backward passes their gradients. The two directions do not wait for each other:
    a forward pass whose hidden states are there is not held up by a backward pass whose gradient
    another stage has yet to make.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: deque[tuple[Future[Any], Start, Future[Any]]] = deque()
        self._is_busy = False

    def add(self, given: "Future[Any]", start: Start) -> "Future[Any]":
        """The answer of `start`, which is called with the answer of `given`."""
        answer = running()
        when_done(given, partial(self._arrived, start=start, answer=answer))
        return answer

    def _arrived(self, given: "Future[Any]", *, start: Start, answer: "Future[Any]") -> None:
        with self._lock:
            self._ready.append((given, start, answer))
            if self._is_busy:
                return
            self._is_busy = True
        self._go_on()

    def _go_on(self) -> None:
        while True:
            with self._lock:
                if not self._ready:
                    self._is_busy = False
                    return
                given, start, answer = self._ready.popleft()
            try:
                made = start(given.result())
            except BaseException as error:
                answer.set_exception(error)
                continue
            if not made.done():
                when_done(made, partial(self._made, answer=answer))
                return
            settle(answer, made.result)

    def _made(self, made: "Future[Any]", *, answer: "Future[Any]") -> None:
        settle(answer, made.result)
        self._go_on()
