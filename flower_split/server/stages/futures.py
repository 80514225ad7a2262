"""Futures that follow from others, which nobody can cancel.

A future keeps its callbacks when they were called, and they what they were made of: futures that
follow from one another would hold tensors until Python looks for cycles. `when_done` lets go.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def running() -> "Future[Any]":
    """A future whose maker will answer it, whoever stops waiting for it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def failed(error: BaseException) -> "Future[Any]":
    """A future that has failed."""
    future = running()
    future.set_exception(error)
    return future


def done(value: T) -> "Future[T]":
    """A future that has its answer."""
    future: Future[T] = running()
    future.set_result(value)
    return future


def settle(future: "Future[R]", work: Callable[[], R]) -> None:
    """Answer `future` by what `work` returns or raises."""
    try:
        answer = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(answer)


def when_done(given: "Future[Any]", work: "Callable[[Future[Any]], object]") -> None:
    """Call `work` with `given` once that has ended, and keep nothing of it then."""
    given.add_done_callback(_Once(work))


class _Once:
    """A callback that forgets what it has called."""

    def __init__(self, work: "Callable[[Future[Any]], object]") -> None:
        self._work: Callable[[Future[Any]], object] | None = work

    def __call__(self, made: "Future[Any]") -> None:
        work, self._work = self._work, None
        if work is not None:
            work(made)


def then(given: "Future[T]", work: Callable[[T], R]) -> "Future[R]":
    """What `work` makes of the answer, in the thread that gives it."""
    future: Future[R] = running()
    when_done(given, lambda made: settle(future, lambda: work(made.result())))
    return future


def unless(
    given: "Future[T]",
    failing: "Callable[[BaseException], Future[Any]]",
    finally_: Callable[[], None] = lambda: None,
) -> "Future[T]":
    """The answer of `given`. Where it fails, its failure, once what `failing` begins has ended,
    however it does, and `finally_` was called."""
    future: Future[T] = running()

    def ended(made: "Future[T]") -> None:
        error = made.exception()
        if error is None:
            future.set_result(made.result())
            return

        def told(_: object) -> None:
            finally_()
            future.set_exception(error)

        try:
            begun = failing(error)
        except Exception as other:
            begun = failed(other)
        when_done(begun, told)

    when_done(given, ended)
    return future


def gathered(futures: "Sequence[Future[T]]") -> "Future[list[T]]":
    """All answers, once all have ended; or the first failure, in the order given."""
    whole: Future[list[T]] = running()
    left = len(futures)
    lock = threading.Lock()

    def ended(_: "Future[T]") -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        settle(whole, lambda: [future.result() for future in futures])

    if not futures:
        whole.set_result([])
    for future in futures:
        when_done(future, ended)
    return whole


def in_thread(work: Callable[[], R]) -> "Future[R]":
    """What `work` returns, which may wait for others."""
    future: Future[R] = running()
    # A daemon: whoever forgets to close a session can still exit.
    threading.Thread(target=partial(settle, future, work), name="trunk-chain", daemon=True).start()
    return future
