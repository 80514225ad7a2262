"""Random numbers of threads that draw at once: each draws its own, and lends the right to."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flower_split.segments.randomness import DRAWING, numbers_aside, numbers_from, random_numbers

CPU = torch.device("cpu")
SECONDS = 10.0


def drawn(seed: int) -> torch.Tensor:
    with random_numbers(CPU, seed):
        return torch.rand(1000)


def test_who_draws_draws_alone() -> None:
    expected = [drawn(seed) for seed in range(8)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for seed, numbers in enumerate(pool.map(drawn, range(8))):
                assert torch.equal(numbers, expected[seed])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("depth", [1, 2])
def test_who_waits_lends_the_right_and_goes_on_where_it_was(depth: int) -> None:
    with random_numbers(CPU, 3):
        expected = torch.rand(5), torch.rand(5)
    with ThreadPoolExecutor(1) as pool, random_numbers(CPU, 3):
        first = torch.rand(5)
        for _ in range(depth - 1):
            DRAWING.__enter__()
        with DRAWING.lent(CPU):
            assert pool.submit(drawn, 7).result(SECONDS) is not None
        second = torch.rand(5)
        for _ in range(depth - 1):
            DRAWING.__exit__(None, None, None)
        waiting = pool.submit(drawn, 7)
        assert not waiting.done()
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    assert waiting.result(SECONDS) is not None


def test_who_has_no_right_to_lend_waits_as_it_is() -> None:
    before = torch.get_rng_state()
    with DRAWING.lent(CPU), ThreadPoolExecutor(1) as pool:
        assert pool.submit(drawn, 7).result(SECONDS) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_aside_is_as_if_it_had_not_been() -> None:
    with numbers_from(CPU, 5):
        expected = torch.rand(3)
    with numbers_from(CPU, 5):
        with numbers_aside():
            torch.rand(100)
        assert torch.equal(torch.rand(3), expected)
