"""Every example has a loss of its own, whatever the others are."""

import pytest
import torch
import torch.nn.functional as F

from flower_split.training.clipped import example_losses


def test_a_text_s_loss_is_the_mean_over_its_own_tokens() -> None:
    logits, labels = torch.randn(3, 6, 7), torch.randint(7, (3, 6))
    labels[0, 4:], labels[1, 1:], labels[2] = -100, -100, -100
    losses, total, tokens = example_losses(logits, labels)
    own = F.cross_entropy(logits[0, :3], labels[0, 1:4], reduction="none")
    assert float(losses[0]) == pytest.approx(float(own.mean()))
    assert float(losses[1]) == float(losses[2]) == 0.0
    assert (total, tokens) == (pytest.approx(float(own.sum())), 3)


def test_other_examples_and_padding_change_nothing() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    both, _, _ = example_losses(logits, labels)
    alone, _, _ = example_losses(logits[:1], labels[:1])
    longer, _, _ = example_losses(
        F.pad(logits[:1], (0, 0, 0, 3)), F.pad(labels[:1], (0, 3), value=-100)
    )
    assert float(both[0]) == pytest.approx(float(alone[0])) == pytest.approx(float(longer[0]))


def test_classified_sequences_and_tokens() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, -100])
    losses, _, count = example_losses(logits, labels, "sequence-classification")
    expected = F.cross_entropy(logits[:3], labels[:3], reduction="none")
    assert torch.allclose(losses, F.pad(expected, (0, 1))) and count == 3
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, -100, 1, 2], [2, -100, -100, -100]])
    losses, _, count = example_losses(logits, labels, "token-classification")
    first = F.cross_entropy(logits[0, [0, 2, 3]], labels[0, [0, 2, 3]])
    assert float(losses[0]) == pytest.approx(float(first)) and count == 4
