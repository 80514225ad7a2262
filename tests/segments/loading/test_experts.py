"""The expert that is unlike the others is named."""

import pytest

from flower_split.segments.loading.experts import unlike_expert

ALIKE = {
    f"model.layers.{layer}.mlp.experts.{number}.{part}": (4, 3)
    for layer in range(2)
    for number in range(3)
    for part in ("down", "up")
}


def test_experts_that_are_alike() -> None:
    assert unlike_expert(ALIKE) is None
    assert unlike_expert({}) is None
    assert unlike_expert({**ALIKE, "model.norm.weight": (9,), "model.layers.0.up": (7, 7)}) is None


def test_layers_may_differ() -> None:
    shapes = {name: ((4, 3) if ".0.mlp" in name else (5, 3)) for name in ALIKE}
    assert unlike_expert(shapes) is None


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_the_one_that_is_unlike_the_others(name: str) -> None:
    odd = unlike_expert({**ALIKE, name: (3, 4)})
    assert odd is not None
    assert odd.startswith(f"the tensor '{name}' has the shape (3, 4), expected (4, 3)")
    absent = unlike_expert({other: shape for other, shape in ALIKE.items() if other != name})
    assert absent == f"the tensor '{name}' is missing"
