"""The expert that is unlike its neighbours is named."""

import pytest

from flower_split.segments.loading.stock_loader import odd_expert

ALIKE = {
    f"model.layers.{layer}.mlp.experts.{number}.{part}": (4, 3)
    for layer in range(2)
    for number in range(3)
    for part in ("down", "up")
}


def test_experts_that_are_alike() -> None:
    assert odd_expert(ALIKE) is None
    assert odd_expert({}) is None
    assert odd_expert({**ALIKE, "model.norm.weight": (9,), "model.layers.0.up": (7, 7)}) is None


def test_layers_may_differ() -> None:
    shapes = {name: ((4, 3) if ".0.mlp" in name else (5, 3)) for name in ALIKE}
    assert odd_expert(shapes) is None


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_the_odd_one(name: str) -> None:
    odd = odd_expert({**ALIKE, name: (3, 4)})
    assert odd is not None
    assert odd.startswith(f"the tensor '{name}' has the shape (3, 4), expected (4, 3)")
    absent = odd_expert({other: shape for other, shape in ALIKE.items() if other != name})
    assert absent == f"the tensor '{name}' is missing"
