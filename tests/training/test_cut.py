"""A round of training through the cut is the uncut model's, adapter for adapter."""

import pytest
import torch
from pairs import make_batch as make_cut_batch
from pairs import make_pair

from flower_split.adapters import read_state
from flower_split.data import TokenizedDataset, eval_batches, train_batches
from flower_split.data.packing import pack
from flower_split.data.sequences import Ragged
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW, SplitStages
from flower_split.training import evaluate, train_round


@pytest.mark.medium
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


@pytest.mark.medium
@pytest.mark.parametrize("staged", [False, True], ids=["blocking", "staged"])
def test_packed_rows_equal_the_uncut_models(make_config, staged) -> None:
    rows = [torch.arange(3, 3 + length).tolist() for length in (7, 4, 9, 2, 5, 6, 3, 8)]
    plain_rows = TokenizedDataset(
        sequences=Ragged(rows), prompt_lengths=[0, 2, 3, 0, 0, 1, 1, 4], pad_id=0
    )
    packed = pack(plain_rows, 12)
    batches = train_batches(packed, 2, seed=0, silo=0, round_number=1)
    config = make_config(accumulation=2, local_epochs=2)
    pair = make_pair(optimizer=OptimizerSettings.of_training(config))
    stages = SplitStages(pair.client) if staged else None
    trainable = [p for p in pair.whole.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(trainable, lr=1.0, weight_decay=0.0)
    optimizer = SplitAdamW(pair.client, lr=1.0)
    split = train_round(pair.client, optimizer, batches, config, stages=stages)
    again = train_batches(packed, 2, seed=0, silo=0, round_number=1)
    whole = train_round(pair.whole, plain, again, config)
    assert (split.loss, split.tokens) == (whole.loss, whole.tokens)
    assert split.tokens == 2 * plain_rows.num_targets
    expected = read_state(pair.whole)
    for name, tensor in read_state(pair.client).items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(expected[name])), name
    # Packed or not, trained or not: the loss is that of the texts.
    found, one_by_one = (
        evaluate(pair.client, eval_batches(data, 3)) for data in (packed, plain_rows)
    )
    assert found.tokens == one_by_one.tokens
    assert found.loss == pytest.approx(one_by_one.loss, rel=1e-5)
