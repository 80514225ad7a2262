"""Loss, logits and all gradients of the cut model equal the uncut model's, to the bit."""

import pytest
import torch
from tiny_models import CASE_BY_NAME, CASES, Case, attentions
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments import (
    FAMILIES,
    Family,
    Trunk,
    check_exact,
    check_exact_cuts,
    register_family,
    split_model,
)

CUTS = {"eager": [(0, 1), (2, 0)], "sdpa": [(1, 1)]}


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize(
    ("case", "attention"),
    [
        pytest.param(case, attention, id=f"{case.name}-{attention}")
        for case in CASES
        for attention in attentions(case)
    ],
)
def test_family_is_exact(case: Case, attention: str) -> None:
    check_exact_cuts(case.model(attention), CUTS[attention])


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt-projected", "falcon-alibi"])
def test_a_trunk_of_all_layers_is_exact(name: str) -> None:
    check_exact(CASE_BY_NAME[name].model(), 0, 0)


def test_the_table_covers_every_registered_family() -> None:
    assert {case.model_type for case in CASES} == {
        family.model_type for family in FAMILIES.values() if family.task == "causal-lm"
    }


def test_longrope_is_exact_below_and_above_the_pretraining_length() -> None:
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.5] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 8,
    }
    model = CASE_BY_NAME["phi3"].model(original_max_position_embeddings=8, rope_parameters=scaling)
    check_exact(model, 1, 1)


def test_the_model_is_left_as_it_was() -> None:
    model = CASE_BY_NAME["llama"].model()
    model.train()
    model.model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_exact(model, 1, 1)
    assert model.training and not model.model.norm.training and model.model.layers[0].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class _ReadsTokensInItsLastLayer(LlamaForCausalLM):
    """The last layer computes something else where the model is not given token ids."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self._has_tokens = True
        self.model.register_forward_pre_hook(self._look, with_kwargs=True)
        self.model.layers[-1].register_forward_hook(self._add)

    def _look(self, module: nn.Module, args: object, kwargs: dict[str, object]) -> None:
        self._has_tokens = kwargs.get("input_ids") is not None

    def _add(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output if self._has_tokens else output + 1e-3 * output.roll(1, -1)


def test_an_inexact_model_is_found_out() -> None:
    model = _ReadsTokensInItsLastLayer(CASE_BY_NAME["llama"].config())
    with pytest.raises(UnsupportedFamilyError, match=r"cuts 1/0, without mask: the loss differs"):
        check_exact(model, 1, 0)


def test_a_wrong_entry_is_found_out() -> None:
    model = CASE_BY_NAME["gptj"].model()
    with pytest.raises(UnsupportedFamilyError):
        check_exact(model, 1, 1, family=Family(model_type="gptj", after=("ln_f",)))


def test_nothing_to_differentiate_is_refused() -> None:
    model = CASE_BY_NAME["llama"].model().requires_grad_(False)
    with pytest.raises(ModelError, match="requires a gradient"):
        check_exact(model, 1, 1)


def test_a_family_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(
        name="helium",
        model_type="helium",
        values={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
    )
    model = case.model()
    family = Family(model_type="helium")
    check_exact(model, 1, 1, family=family)
    monkeypatch.setattr("flower_split.segments.families.FAMILIES", dict(FAMILIES))
    register_family(family)
    assert isinstance(split_model(model, 1, 1)[1], Trunk)
