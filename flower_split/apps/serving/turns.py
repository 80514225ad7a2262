"""One answer at a time: requests that wait their turn, a bounded number of them."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

from flower_split.apps.serving.problems import RequestError
from flower_split.apps.using.tuned_model import Answer, Sampling, TunedModel

Came: TypeAlias = str | Answer
_Item: TypeAlias = Came | BaseException


class Turns:
    """Has a model answer, one request after the other, in a thread of its own.

    Args:
        model: Answers.
        waiting: Requests that may wait while one is answered.
    """

    def __init__(self, model: TunedModel, waiting: int) -> None:
        self._model = model
        self._most = waiting + 1
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._stops = set[threading.Event]()

    async def pieces(
        self, ids: Sequence[int], sampling: Sampling, *, goes_on: bool
    ) -> AsyncGenerator[Came, None]:
        """The text of an answer as it comes, and then the answer.

        Closed or cancelled, it ends the answer after the token in the making.

        Raises:
            RequestError: too many wait already.
        """
        if len(self._stops) >= self._most:
            raise RequestError(
                f"{self._most} requests are being answered or wait already: send it again later",
                status=429,
                code="rate_limit_exceeded",
                retry_after=5,
            )
        loop, stop = asyncio.get_running_loop(), threading.Event()
        came: asyncio.Queue[_Item] = asyncio.Queue()

        def put(item: _Item) -> None:
            with suppress(RuntimeError):  # the loop has been closed, and nobody waits
                loop.call_soon_threadsafe(came.put_nowait, item)

        def free() -> None:
            self._stops.discard(stop)

        def work() -> None:
            try:
                if not stop.is_set():
                    answer = self._model.answer(
                        ids, sampling, on_text=put, is_stopped=stop.is_set, goes_on=goes_on
                    )
                    put(answer)
            except BaseException as error:
                put(error)
            finally:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(free)

        self._stops.add(stop)
        self._pool.submit(work)
        try:
            while True:
                item = await came.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Answer):
                    return
        finally:
            stop.set()

    def close(self) -> None:
        """End all answers; returns when the one in the making has ended."""
        for stop in tuple(self._stops):
            stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
