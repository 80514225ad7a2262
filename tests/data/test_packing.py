"""Packing: all sequences in fewer rows, none of which sees another, with the loss of each alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from flower_split.data import TokenizedDataset, eval_batches
from flower_split.data.batching import collate
from flower_split.data.packing import pack, positions
from flower_split.data.sequences import Ragged


def dataset(rows: list[list[int]], prompts: list[int] | None = None) -> TokenizedDataset:
    return TokenizedDataset(
        sequences=Ragged(rows), prompt_lengths=prompts or [0] * len(rows), pad_id=0
    )


ROWS = st.lists(st.lists(st.integers(1, 90), min_size=2, max_size=9), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, room=st.integers(9, 20))
def test_every_sequence_is_in_one_row_whole(rows: list[list[int]], room: int) -> None:
    data = dataset(rows, [len(row) // 3 for row in rows])
    packed = pack(data, room)
    found = []
    for ids, lengths, flags in zip(packed.sequences, packed.lengths, packed.learnt, strict=True):
        assert len(ids) == int(lengths.sum()) == len(flags) <= room
        found += [part.tolist() for part in ids.split(lengths.tolist())]
    assert sorted(found) == sorted(rows)
    assert packed.num_targets == data.num_targets
    assert (packed.num_tokens, packed.num_examples) == (data.num_tokens, len(rows))


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, room=st.integers(9, 20))
def test_rows_are_those_of_best_fit_with_the_longest_first(
    rows: list[list[int]], room: int
) -> None:
    left: list[int] = []
    for length in sorted(map(len, rows), reverse=True):
        fits = [space for space in left if space >= length]
        if fits:
            left.remove(min(fits))
        left.append((min(fits) if fits else room) - length)
    packed = pack(dataset(rows), room)
    assert sorted(room - len(ids) for ids in packed.sequences) == sorted(left)


def test_a_packed_batch_by_hand() -> None:
    packed = pack(dataset([[5, 6, 7], [8, 9], [1, 2, 3, 4]], [1, 1, 2]), 5)
    batch = collate(packed, [0, 1])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, -100], [-100, 6, 7, -100, 9]]
    assert "attention_mask" not in batch
    assert positions(torch.tensor([1, 2]), 6).tolist() == [0, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_sequences_one_by_one(family: str, attention: str) -> None:
    model = tiny_model(family, 3, vocab_size=96, attn_implementation=attention)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(3, 96, (length,), generator=generator).tolist()
        for length in (7, 4, 9, 2, 5, 6, 3)
    ]
    data = dataset(rows, [0, 2, 3, 0, 0, 1, 1])
    losses = []
    for one in (data, pack(data, 12)):
        total, count = torch.zeros(()), 0
        model.zero_grad()
        for batch in eval_batches(one, 2):
            targets = int((batch["labels"][:, 1:] != -100).sum())
            (model(**batch, use_cache=False).loss * targets).backward()
            total += model(**batch, use_cache=False).loss.detach() * targets
            count += targets
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        losses.append((total / count, gradients / count, count))
    (loss, gradient, count), (packed_loss, packed_gradient, packed_count) = losses
    assert count == packed_count == data.num_targets
    assert torch.allclose(loss, packed_loss, rtol=1e-5)
    assert torch.allclose(gradient, packed_gradient, rtol=1e-4, atol=1e-6)
