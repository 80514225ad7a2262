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
        self._under_way = 0
        self._taken = asyncio.Event()

    async def ask(self, request: Request) -> None:
        """Ask; returns when the next request may be asked for, if it is of the same kind."""
        alone = not isinstance(request, ForwardRequest | BackwardRequest)
        await self._fewer_than(1 if alone else self._depth)
        self._under_way += 1
        # Tasks begin in the order of their making, and requests are taken as they begin.
        self._asked.put_nowait((request, self._group.create_task(self._answered(request))))
        if alone:
            await self._fewer_than(1)

    def end(self) -> None:
        """Nothing more is asked for."""
        self._asked.put_nowait(None)

    async def answers(self) -> AsyncIterator[tuple[Request, Reply]]:
        """Requests and their answers, in order; one is under way until the next is asked for."""
        while (item := await self._asked.get()) is not None:
            request, asked = item
            yield request, await asked
            self._under_way -= 1
            self._taken.set()

    async def _fewer_than(self, most: int) -> None:
        while self._under_way >= most:
            self._taken.clear()
            await self._taken.wait()

    async def _answered(self, request: Request) -> Reply:
        with self._progress.working(counts=not isinstance(request, Unanswered)):
            return await self._session.ask(request)
