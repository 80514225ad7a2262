"""Factored algebra against dense matrices in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.lowrank import Factors, Scaling, leading, recompressed, stacked

SIZES = st.integers(1, 12)


@st.composite
def sums(draw):
    """Updates of one module with weights."""
    inputs, outputs = draw(SIZES), draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    updates = []
    for rank in draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)):
        scaling = Scaling(r=rank, alpha=draw(st.floats(0.1, 64.0)), rslora=draw(st.booleans()))
        updates.append(
            Factors(
                a=torch.randn(rank, inputs, generator=generator, dtype=torch.float64),
                b=torch.randn(outputs, rank, generator=generator, dtype=torch.float64),
                scale=scaling.factor,
            )
        )
    weights = [draw(st.floats(0.01, 1.0)) for _ in updates]
    return updates, weights


def dense(updates, weights):
    return sum(w * u.product() for w, u in zip(weights, updates, strict=True))


def close(ours, theirs, tolerance=1e-10):
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= tolerance * max(float(theirs.norm()), 1e-12)


@settings(deadline=None, max_examples=50)
@given(sums())
def test_a_stack_is_the_weighted_sum_and_has_no_more_rank_than_the_module(drawn):
    updates, weights = drawn
    total = stacked(updates, weights)
    close(total.product(), dense(updates, weights))
    assert total.rank <= max(total.full_rank, sum(u.rank for u in updates))
    assert total.rank <= total.full_rank or len(updates) == 1


@settings(deadline=None, max_examples=50)
@given(sums())
def test_recompression_keeps_the_update_and_finds_its_rank(drawn):
    updates, weights = drawn
    twice = [*updates, *updates]
    total = dense(updates, weights)
    small = recompressed(stacked(twice, [0.5 * w for w in weights * 2]))
    close(small.product(), total, 2e-8)
    assert small.rank <= small.full_rank
    assert small.rank <= max(sum(u.rank for u in updates), 1)


@pytest.mark.medium
@settings(deadline=None, max_examples=50)
@given(sums(), st.integers(1, 12))
def test_leading_is_the_best_approximation_of_every_smaller_rank(drawn, rank):
    updates, weights = drawn
    total = stacked(updates, weights)
    found = leading(total, rank)
    singular = torch.linalg.svdvals(total.product())
    scale = max(float(singular[0]), 1e-12)
    assert found.rank == min(rank, total.rank, total.full_rank)
    for cut in range(1, found.rank + 1):
        error = float((total.product() - found.truncated(cut).product()).norm())
        best = float(singular[cut:].norm())
        assert abs(error - best) <= 1e-6 * scale
    torch.testing.assert_close(
        found.b.norm(dim=0), singular[: found.rank], atol=1e-7 * scale, rtol=0
    )
    close(found.a @ found.a.T, torch.eye(found.rank, dtype=torch.float64), 1e-8)


@pytest.mark.medium
def test_leading_of_a_large_update_agrees_with_the_dense_decomposition():
    """Above the size up to which it is direct: the block Krylov iteration."""
    generator = torch.Generator().manual_seed(0)
    sizes = 0.97 ** torch.arange(1100, dtype=torch.float64)
    b = torch.randn(1200, 1100, generator=generator, dtype=torch.float64) / 1200**0.5 * sizes
    a = torch.randn(1100, 1150, generator=generator, dtype=torch.float64) / 1150**0.5
    update = Factors(a=a, b=b)
    found = leading(update, 12)
    singular = torch.linalg.svdvals(update.product())
    torch.testing.assert_close(found.b.norm(dim=0), singular[:12], rtol=1e-5, atol=0)
    error = float((update.product() - found.product()).norm())
    assert error <= float(singular[12:].norm()) * (1 + 1e-6)


@settings(deadline=None, max_examples=50)
@given(sums())
def test_the_norm_is_the_dense_one(drawn):
    (update, *_), _ = drawn
    assert update.norm() == pytest.approx(float(update.product().norm()), rel=1e-9)


def test_a_scale_moves_into_b_and_back():
    update = Factors(a=torch.randn(3, 4), b=torch.randn(5, 3), scale=2.0)
    moved = update.at_scale(0.5)
    assert moved.scale == 0.5
    torch.testing.assert_close(moved.product(), update.product())
    assert moved.a is update.a
    assert update.at_scale(2.0) is update


def test_zero_padding_keeps_the_update_and_truncation_its_first_components():
    update = Factors(a=torch.randn(3, 4), b=torch.randn(5, 3), scale=2.0)
    padded = update.zero_padded(6)
    assert padded.rank == 6
    torch.testing.assert_close(padded.product(), update.product())
    assert torch.equal(padded.truncated(3).a, update.a)
    assert padded.truncated(9) is padded


def test_factors_without_a_product_are_refused():
    with pytest.raises(ValueError, match="have no product"):
        Factors(a=torch.zeros(3, 4), b=torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (Scaling(r=4, alpha=8.0), 2.0),
        (Scaling(r=4, alpha=8.0, rslora=True), 4.0),
        (Scaling(r=16, alpha=8.0), 0.5),
    ],
)
def test_the_factor_is_pefts(scaling, factor):
    assert scaling.factor == factor


@pytest.mark.parametrize("wrong", [{"r": 0}, {"r": 70000}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_a_scaling_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="LoRA"):
        Scaling(**{"r": 4, "alpha": 8.0, **wrong})
