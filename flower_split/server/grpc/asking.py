"""Asking a session: its requests in their order, and how many of them are under way."""

import asyncio
from collections.abc import AsyncIterator

from flower_split.server.grpc.admitted import AdmittedSession
from flower_split.server.grpc.progress import Progress
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    Reply,
    Request,
    Unanswered,
)


class Asking:
    """Asks for passes up to the session's depth at a time, and for all else alone.

    A backward pass is asked for when its forward pass is answered, as a session of any depth may
    expect: a silo need not have waited for h2.

    Args:
        session: Open.
        progress: Notes that the session works.
        group: Ends where a request fails.
    """

    def __init__(
        self, session: AdmittedSession, progress: Progress, group: asyncio.TaskGroup
    ) -> None:
        self._session = session
        self._progress = progress
        self._group = group
        self._depth = session.depth
        self._asked: asyncio.Queue[tuple[Request, asyncio.Task[Reply]] | None] = asyncio.Queue()
        self._forwards: dict[int, asyncio.Task[Reply]] = {}
        """Under way, by their microbatches."""
        self._under_way = 0
        self._taken = asyncio.Event()

    async def ask(self, request: Request) -> None:
        """Ask; returns when the next request may be asked for, if it is of the same kind."""
        alone = not isinstance(request, ForwardRequest | BackwardRequest)
        await self._fewer_than(1 if alone else self._depth)
        if isinstance(request, BackwardRequest) and request.microbatch in self._forwards:
            await asyncio.wait([self._forwards[request.microbatch]])
        self._under_way += 1
        # Tasks begin in the order of their making, and requests are taken as they begin.
        asked = self._group.create_task(self._answered(request))
        self._asked.put_nowait((request, asked))
        if isinstance(request, ForwardRequest):
            self._forwards[request.microbatch] = asked
        if alone:
            await self._fewer_than(1)

    def end(self) -> None:
        """Nothing more is asked for."""
        self._asked.put_nowait(None)

    async def answers(self) -> AsyncIterator[tuple[Request, Reply]]:
        """Requests and their answers, in order; one is under way until the next is asked for."""
        while (item := await self._asked.get()) is not None:
            request, asked = item
            reply = await asked
            if isinstance(request, ForwardRequest):
                self._forwards.pop(request.microbatch, None)
            yield request, reply
            self._under_way -= 1
            self._taken.set()

    async def _fewer_than(self, most: int) -> None:
        while self._under_way >= most:
            self._taken.clear()
            await self._taken.wait()

    async def _answered(self, request: Request) -> Reply:
        with self._progress.working(counts=not isinstance(request, Unanswered)):
            return await self._session.ask(request)
