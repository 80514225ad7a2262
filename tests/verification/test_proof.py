"""The proof finds what a trunk does wrong, and says where."""

from typing import Any

import pytest
from family_table import causal_config
from torch import Tensor

from flower_split.errors import UnsupportedFamilyError
from flower_split.segments import FAMILIES, Trunk
from flower_split.verification import prove
from flower_split.verification.proof import cuts_of

FORWARD = Trunk.forward


@pytest.mark.parametrize("layers", range(4, 25))
def test_every_place_is_cut_at(layers: int) -> None:
    cuts = cuts_of(layers)
    places = {bottom for bottom, _ in cuts} | {layers - top for _, top in cuts}
    assert places == set(range(layers + 1))
    assert all(bottom + top < layers for bottom, top in cuts)


def _wrong(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    def forward(self: Trunk, hidden: Tensor, **given: Any) -> Tensor:
        return change(self, hidden, given)

    monkeypatch.setattr(Trunk, "forward", forward)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ("attention_mask", r"cuts 1/1, right padding: the l\w+ differs"),
        ("position_ids", r"cuts 1/1, (explicit positions|packed documents).*: the l\w+ differs"),
        ("past_key_values", r"cuts 1/1, packed documents, with a cache: the l\w+ differs"),
    ],
)
def test_a_trunk_that_ignores_an_argument_is_found_out(
    monkeypatch: pytest.MonkeyPatch, ignored: str, said: str
) -> None:
    _wrong(monkeypatch, lambda trunk, h1, given: FORWARD(trunk, h1, **{**given, ignored: None}))
    with pytest.raises(UnsupportedFamilyError, match=said):
        prove(causal_config("helium"))


@pytest.mark.medium
def test_a_small_difference_of_a_gradient_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(trunk: Trunk, h1: Tensor, given: Any) -> Tensor:
        h2 = FORWARD(trunk, h1, **given)
        if h2.requires_grad:
            h2.register_hook(lambda gradient: gradient * (1 + 1e-4))
        return h2

    _wrong(monkeypatch, change)
    with pytest.raises(UnsupportedFamilyError, match=r"steps: the stepped .* differs"):
        prove(causal_config("helium"))


@pytest.mark.exhaustive
def test_registered_families_are_left_as_they_were() -> None:
    before = dict(FAMILIES)
    assert prove(causal_config("gptj")).returns_tuple
    assert before == FAMILIES
