"""The orthogonal term of vectors that lie with two parties is PEFT's of the whole model."""

import torch
from peft import AdaLoraConfig, get_peft_model
from tiny_models import tiny_model

from flower_split.adapters.adalora.orthogonality import (
    find_adalora,
    orthogonality,
    trained_config,
)


def test_its_parts_make_up_what_peft_adds_to_the_loss() -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "down_proj"],
        total_step=10,
        orth_reg_weight=0.3,
    )
    model = get_peft_model(tiny_model(), config)
    found = find_adalora(model)
    assert found is not None
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    vectors = [p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    ids = torch.arange(4, 16).reshape(2, 6)
    whole = model(input_ids=ids, labels=ids).loss
    plain = found.model(input_ids=ids, labels=ids).loss
    before = orthogonality(vectors[:4])
    term = orthogonality(vectors[4:], before)
    assert term is not None
    expected = plain + trained_config(found).orth_reg_weight * (term / len(vectors))
    assert torch.equal(whole, expected)


def test_there_is_none_without_tensors() -> None:
    assert orthogonality([]) is None
    assert find_adalora(tiny_model()) is None
