"""Which layer a tensor belongs to, whatever prefix its name has."""

import pytest
from tiny_models import CASES, Case
from torch import nn

from flower_split.errors import UnsupportedFamilyError
from flower_split.segments import Cuts, held_by_trunk, layer_index, layers_path
from flower_split.segments.layers import find_layers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_and_modules_agree(case: Case) -> None:
    model = case.model()
    path, layers = find_layers(model)
    for prefix in ("", "base_model.model."):
        for index, layer in enumerate(layers):
            names = [name for name, _ in layer.named_parameters(prefix=f"{prefix}{path}.{index}")]
            assert {layer_index(name, path) for name in names} == {index}
        inside = {name for name, _ in model.named_parameters() if f".{path}." in f".{name}"}
        ends = {name for name, _ in model.named_parameters()} - inside
        assert ends and all(layer_index(prefix + name, path) is None for name in ends)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("h.3.attn.c_attn.weight", 3),
        ("base_model.model.transformer.h.12.mlp.c_fc.lora_A.weight", 12),
        ("transformer.wte.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_prefixes_are_understood(name: str, index: int | None) -> None:
    assert layer_index(name, "transformer.h") == index


def test_the_trunk_holds_its_range_only() -> None:
    cuts = Cuts(bottom_layers=1, top_layers=2, num_layers=5)
    held = [i for i in range(5) if held_by_trunk(f"model.layers.{i}.x", "model.layers", cuts)]
    assert held == [1, 2]
    assert not held_by_trunk("model.norm.weight", "model.layers", cuts)


def test_two_lists_of_layers_are_refused() -> None:
    model = CASES[0].model()
    model.more = nn.ModuleList(nn.Identity() for _ in find_layers(model)[1])
    with pytest.raises(UnsupportedFamilyError, match="2 lists of 4 layers"):
        layers_path(model)
