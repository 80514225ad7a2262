"""Autocast: who computes in which dtype."""

import pytest
import torch

from flower_split.devices import CastWatch, as_inner, autocast_dtype, autocasting

CPU = torch.device("cpu")
A = torch.full((2, 2), 1 / 3)


def test_names() -> None:
    assert autocast_dtype("off") is None
    assert autocast_dtype("bfloat16") is torch.bfloat16


def test_on_and_off_hold_whatever_is_around() -> None:
    assert (A @ A).dtype is torch.float32
    with autocasting(CPU, torch.bfloat16):
        assert (A @ A).dtype is torch.bfloat16
        with autocasting(CPU, None):
            assert (A @ A).dtype is torch.float32
        assert (A @ A).dtype is torch.bfloat16
    with autocasting(CPU, None):
        assert (A @ A).dtype is torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_error_inside_leaves_nothing_on(dtype: torch.dtype | None) -> None:
    with pytest.raises(ZeroDivisionError), autocasting(CPU, dtype):
        1 / 0  # noqa: B018
    assert not torch.is_autocast_enabled("cpu")


def test_a_leaf_is_cast_at_every_use_as_what_a_layer_computed_is() -> None:
    """The sum of many gradients tells: bfloat16 loses most of them."""
    weight = torch.eye(2)

    def gradient(start: torch.Tensor, inner: torch.Tensor) -> float:
        with autocasting(CPU, torch.bfloat16):
            total = sum((as_inner(inner) @ weight).float().sum() for _ in range(600))
        total.backward()
        assert start.grad is not None
        return float(start.grad[0, 0])

    leaf, start = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    assert gradient(leaf, leaf) == gradient(start, start * 1.0) == 600.0


def test_without_autocast_a_tensor_is_left_alone() -> None:
    assert as_inner(A) is A


def test_a_context_that_has_stayed_open_is_noticed() -> None:
    device, watch = torch.device("cpu"), CastWatch()
    assert not watch.is_kept(device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        watch.look(device)
        assert watch.is_kept(device)
        watch.look(device)
        assert watch.is_kept(device)
    assert not watch.is_kept(device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not watch.is_kept(device)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        watch.look(device)
        assert not watch.is_kept(device)
