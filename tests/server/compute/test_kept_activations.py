"""Activations that trunks on one device keep: bounded together, with a part for each."""

from collections.abc import Callable

import pytest

from flower_split.server.compute.activation_budget import ActivationBudget
from flower_split.server.compute.kept_activations import KeptActivations


def budget(
    common: KeptActivations,
    max_tokens: int = 0,
    on_room: Callable[[], None] | None = None,
    token_bytes: int = 10,
) -> ActivationBudget:
    return ActivationBudget(max_tokens, on_room, common=common, token_bytes=token_bytes)


def test_one_that_is_alone_has_all() -> None:
    common = KeptActivations(1000)
    alone = budget(common)
    assert alone.room == 100
    alone.take(70)
    assert (alone.room, common.held) == (30, 700)
    alone.give_back(70)
    assert alone.room == 100


def test_nobody_takes_the_others_part() -> None:
    common = KeptActivations(1000)
    greedy, other = budget(common), budget(common)
    greedy.take(int(greedy.room))
    assert greedy.kept == 75
    assert greedy.room == 0
    assert other.room == 25
    other.take(25)
    assert other.room == 0 and common.held == 1000


def test_a_bound_of_its_own_holds_beside_it() -> None:
    assert budget(KeptActivations(1000), max_tokens=7).room == 7


def test_who_waits_is_woken_as_another_lets_go() -> None:
    common = KeptActivations(1000)
    woken = list[str]()
    one, other = (budget(common, on_room=lambda name=name: woken.append(name)) for name in "ab")
    other.take(5)
    other.give_back(5)
    assert woken == ["a"]
    assert one.room == 75


def test_one_that_is_gone_keeps_nothing() -> None:
    common = KeptActivations(1000)
    gone, left = budget(common), budget(common)
    gone.take(40)
    assert left.room == 60
    del gone
    assert left.room == 100


@pytest.mark.parametrize("token_bytes", [0, 10_000])
def test_any_size_of_a_token_gives_a_number(token_bytes: int) -> None:
    assert budget(KeptActivations(1000), token_bytes=token_bytes).room >= 0
