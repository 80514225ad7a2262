"""Clipping over both sides of the cut equals torch's clipping of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flower_split.errors import WireError
from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    global_norm,
    gradient_norms,
)


def _parameters(shapes: list[tuple[int, int]], scale: float, seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=generator) * scale
        made.append(parameter)
    return made


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 300)), min_size=3, max_size=8),
    cuts=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    scale=st.sampled_from([1e-4, 1.0, 37.0]),
    seed=st.integers(0, 2**31),
)
def test_three_parties_clip_as_one_to_the_bit(
    shapes: list[tuple[int, int]], cuts: tuple[int, int], scale: float, seed: int
) -> None:
    whole, parts = _parameters(shapes, scale, seed), _parameters(shapes, scale, seed)
    low, high = sorted(min(cut, len(shapes)) for cut in cuts)
    before, trunk, after = parts[:low], parts[low:high], parts[high:]
    norms = [*gradient_norms(before), *gradient_norms(trunk), *gradient_norms(after)]

    expected = nn.utils.clip_grad_norm_(whole, 1.0)
    for part in (before, trunk, after):
        assert clip_by_global_norm(part, norms, 1.0) == float(expected)

    for ours, theirs in zip(parts, whole, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_tensors_without_gradient_do_not_count() -> None:
    with_grad, without = _parameters([(2, 2)], 1.0, 0)[0], nn.Parameter(torch.zeros(3))
    assert len(gradient_norms([without, with_grad, without])) == 1
    assert gradient_norms([without]) == ()
    assert float(global_norm(())) == 0.0


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0, 1e30])
def test_a_peer_cannot_send_a_norm_that_is_none(norm: float) -> None:
    with pytest.raises(WireError, match="gradient norm number 1"):
        checked_norms([0.5, norm])
