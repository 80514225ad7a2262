"""Asking a session: passes up to its depth at a time, all else alone, and answers in order."""

import asyncio
from typing import Any

import pytest
from affine_backend import backward, forward

from flower_split.errors import WireError
from flower_split.server.grpc.asking import Asking
from flower_split.server.grpc.progress import Progress
from flower_split.transport.messages import Finish, Release, StepRequest


class Session:
    """Answers when it is told to."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.asked: list[Any] = []
        self.answers: list[asyncio.Future[Any]] = []

    async def ask(self, request: Any) -> Any:
        self.asked.append(request)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


REQUESTS = [
    *(forward(number) for number in range(3)),
    backward(0),
    StepRequest(step=0, learning_rate=0.1),
    forward(3),
    Release(microbatch=3),
    forward(4),
    Finish(),
]


@pytest.mark.parametrize(
    ("depth", "batches"), [(1, [1] * 9), (2, [2, 2, 1, 1, 1, 1, 1]), (4, [3, 1, 1, 1, 1, 1, 1])]
)
def test_requests_under_way(depth: int, batches: list[int]) -> None:
    async def run() -> None:
        session, got = Session(depth), list[Any]()
        async with asyncio.TaskGroup() as group:
            asking = Asking(session, Progress(), group)  # type: ignore[arg-type]

            async def ask() -> None:
                for request in REQUESTS:
                    await asking.ask(request)
                asking.end()

            async def take() -> None:
                async for request, reply in asking.answers():
                    got.append((request, reply))

            group.create_task(ask())
            group.create_task(take())
            answered, seen = 0, list[int]()
            while answered < len(REQUESTS):
                await settled()
                seen.append(len(session.asked) - answered)
                while answered < len(session.asked):
                    session.answers[answered].set_result(answered)
                    answered += 1
            assert seen == batches
        assert session.asked == REQUESTS
        assert got == list(zip(REQUESTS, range(len(REQUESTS)), strict=True))

    asyncio.run(run())


def test_a_backward_pass_waits_for_its_own_forward_pass_alone() -> None:
    requests = [forward(0), forward(1), backward(1), backward(0)]

    async def run() -> None:
        session = Session(4)
        async with asyncio.TaskGroup() as group:
            asking = Asking(session, Progress(), group)  # type: ignore[arg-type]

            async def ask() -> None:
                for request in requests:
                    await asking.ask(request)

            group.create_task(ask())
            await settled()
            assert session.asked == requests[:2]
            session.answers[1].set_result(1)
            await settled()
            assert session.asked == requests[:3]
            session.answers[0].set_result(0)
            await settled()
            assert session.asked == requests
            for answer in session.answers[2:]:
                answer.set_result(None)

    asyncio.run(run())


def test_answers_are_in_order_whichever_comes_first() -> None:
    async def run() -> None:
        session, got = Session(3), list[Any]()
        async with asyncio.TaskGroup() as group:
            asking = Asking(session, Progress(), group)  # type: ignore[arg-type]

            async def take() -> None:
                async for _, reply in asking.answers():
                    got.append(reply)

            group.create_task(take())
            for number in range(3):
                await asking.ask(forward(number))
            asking.end()
            await settled()
            for number in (2, 1):
                session.answers[number].set_result(number)
            await settled()
            assert got == []
            session.answers[0].set_result(0)
        assert got == [0, 1, 2]

    asyncio.run(run())


def test_a_failure_ends_all_of_them() -> None:
    async def run() -> None:
        session = Session(2)
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                asking = Asking(session, Progress(), group)  # type: ignore[arg-type]
                await asking.ask(forward(0))
                await asking.ask(forward(1))
                await settled()
                session.answers[0].set_exception(WireError("no"))
        assert raised.value.subgroup(WireError) is not None

    asyncio.run(run())
