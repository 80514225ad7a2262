"""A round of training through the cut is the uncut model's, adapter for adapter."""

import pytest
import torch
from pairs import make_batch as make_cut_batch
from pairs import make_pair

from flower_split.adapters import read_state
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW
from flower_split.training import evaluate, train_round


@pytest.mark.sampled
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_a_round_and_an_evaluation_equal_the_uncut_models(make_config, max_grad_norm) -> None:
    config = make_config(
        max_grad_norm=max_grad_norm,
        accumulation=2,
        local_epochs=2,
        schedule="cosine",
        warmup_steps=1,
        weight_decay=0.01,
    )
    pair = make_pair(optimizer=OptimizerSettings.of_training(config))
    batches = [make_cut_batch(3, 11, seed=seed) for seed in range(3)]
    batches[1]["labels"][:, :6] = -100
    trainable = [p for p in pair.whole.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(trainable, lr=1.0, weight_decay=0.01)
    split = train_round(
        pair.client, SplitAdamW(pair.client, lr=1.0), batches, config, total_steps=8
    )
    whole = train_round(pair.whole, plain, batches, config, total_steps=8)
    assert (split.loss, split.grad_norm, split.tokens, split.steps) == (
        whole.loss,
        whole.grad_norm,
        whole.tokens,
        whole.steps,
    )
    expected, moved = read_state(pair.whole), False
    for name, tensor in read_state(pair.client).items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(expected[name])), name
        moved |= not torch.equal(torch.as_tensor(tensor), pair.client_state[name])
    assert moved
    # Evaluated through the trunk's adapters too, which this side does not hold.
    assert evaluate(pair.client, batches) == evaluate(pair.whole, batches)
