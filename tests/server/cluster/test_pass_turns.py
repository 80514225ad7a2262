"""Passes that Ray begins in any order, or never: each is computed in its turn."""

import asyncio

import pytest

from flower_split.errors import SequenceError
from flower_split.server.cluster.pass_turns import PassTurns


async def took(turns: PassTurns, number: int, made: list[int]) -> None:
    async with turns.turn("forward", number):
        made.append(number)


def test_passes_are_computed_in_the_order_of_their_numbers() -> None:
    async def run() -> list[int]:
        turns, made = PassTurns(), list[int]()
        await asyncio.gather(*(took(turns, number, made) for number in (2, 0, 1)))
        return made

    assert asyncio.run(run()) == [0, 1, 2]


@pytest.mark.parametrize("skipped", [(0,), (1,), (2, 1), (0, 1, 2)])
def test_nobody_waits_for_a_pass_that_is_never_begun(skipped: tuple[int, ...]) -> None:
    async def run() -> list[int]:
        turns, made = PassTurns(), list[int]()
        begun = [took(turns, number, made) for number in (3, 2, 1, 0) if number not in skipped]
        skips = [turns.skip("forward", number) for number in skipped]
        await asyncio.wait_for(asyncio.gather(*begun, *skips), 5)
        await turns.skip("forward", 0)  # as of one that has failed in its turn
        await asyncio.wait_for(took(turns, 4, made), 5)
        return made

    assert asyncio.run(run()) == [number for number in range(5) if number not in skipped]


def test_who_waits_is_told_of_the_end() -> None:
    async def run() -> None:
        turns = PassTurns()
        waiting = asyncio.create_task(took(turns, 1, []))
        await asyncio.sleep(0)
        await turns.end()
        await waiting

    with pytest.raises(SequenceError, match="ended"):
        asyncio.run(run())
