"""Bottom, trunk and top as modules of their own: a step of split learning, with PEFT on each."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny_models import CASE_BY_NAME

from flower_split.segments import split_segments

IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 1, 2, 3, 4]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
LABELS = IDS.masked_fill(MASK == 0, -100)


def test_gradients_can_be_carried_by_hand() -> None:
    model = CASE_BY_NAME["gemma2"].model()
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    bottom, trunk, top = split_segments(model, 1, 1)
    h1 = bottom(IDS, attention_mask=MASK)
    sent = h1.detach().requires_grad_()
    h2 = trunk(sent, attention_mask=MASK)
    returned = h2.detach().requires_grad_()
    top(returned, attention_mask=MASK, labels=LABELS).loss.backward()
    h2.backward(returned.grad)
    h1.backward(sent.grad)
    assert all(torch.equal(p.grad, expected[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("cuts", [(1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-projected"])
def test_adapters_of_the_three_are_the_full_models(name: str, cuts: tuple[int, int]) -> None:
    model = CASE_BY_NAME[name].model()
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "opt-projected": ["q_proj"]}
    lora = LoraConfig(r=2, target_modules=targets[name], init_lora_weights=False)
    parts = split_segments(copy.deepcopy(model), *cuts)
    union: dict[str, torch.Tensor] = {}
    for part, layers in zip(parts, (cuts[0], 1, cuts[1]), strict=True):
        if layers:
            state = get_peft_model_state_dict(get_peft_model(part.model, lora))
            assert state and not union.keys() & state.keys()
            union |= state
    whole = get_peft_model(model, lora)
    assert set(get_peft_model_state_dict(whole)) == set(union)
    set_peft_model_state_dict(whole, union)
    bottom, trunk, top = parts
    hidden = trunk(bottom(IDS, attention_mask=MASK), attention_mask=MASK)
    logits = top(hidden, attention_mask=MASK).logits
    assert torch.equal(logits, whole(input_ids=IDS, attention_mask=MASK).logits)
