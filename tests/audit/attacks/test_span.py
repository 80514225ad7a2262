"""The span check finds all tokens where a step has no more than the rank, and none beyond."""

import torch
from audit_texts import HIDDEN, VOCABULARY, table

from flower_split.audit.attacks.span import (
    StepGradient,
    numerical_rank,
    rank_of_step,
    sizes,
    span_check,
)

RANK = 6


def step(tokens: int, *, moving: bool = False) -> StepGradient:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randperm(VOCABULARY, generator=generator)[:tokens]
    rows = table()

    def inputs(place: int) -> torch.Tensor:
        return rows + place * torch.ones(HIDDEN) if moving else rows

    own = torch.stack([inputs(place)[token] for place, token in enumerate(ids.tolist())])
    weights = torch.randn(RANK, tokens, generator=generator)
    return StepGradient(gradient=weights @ own, inputs=inputs, moving=moving, ids=ids, rank=RANK)


def test_tokens_are_found_exactly_up_to_the_rank() -> None:
    assert sizes(RANK, 100) == [3, 6, 7, 12] and sizes(RANK, 6) == [3, 6]
    assert sizes(100, 20) == [20]
    for moving in (False, True):
        for tokens in sizes(RANK, 100):
            check = span_check(step(tokens, moving=moving))
            assert check.applicable is (tokens <= RANK)
            assert check.found == (1.0 if tokens <= RANK else 0.0)
            assert check.false < 0.02


def test_signs_of_a_gradient_have_another_span() -> None:
    made = step(4)
    signs = StepGradient(
        gradient=made.gradient.sign(), inputs=made.inputs, moving=False, ids=made.ids, rank=RANK
    )
    assert span_check(signs).found == 0


def test_rows_that_depend_on_one_another_do_not_count() -> None:
    made = step(3 * RANK)
    assert numerical_rank(made.gradient) == RANK
    assert numerical_rank(step(RANK - 2).gradient) == RANK - 2
    twice = torch.cat([made.gradient[:-1], -made.gradient[:1]])
    assert numerical_rank(twice) == RANK - 1
    assert rank_of_step(twice, RANK, RANK) == RANK - 1
    assert rank_of_step(step(RANK - 2).gradient, RANK - 2, RANK) == RANK
