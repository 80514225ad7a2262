"""A step over several microbatches is the step over their union."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flower_split.errors import DataError, DivergenceError
from flower_split.training.accumulation import accumulate, takes_num_items


class OwnMean(torch.nn.Module):
    """A model whose loss is always the mean over its own batch."""

    accepts_loss_kwargs = False

    def __init__(self, stock: torch.nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, **batch: Any) -> Any:
        return self.stock(**batch)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("own_mean", [False, True])
def test_microbatches_of_unequal_targets_equal_one_big_batch(
    make_model, make_batch, family, own_mean
) -> None:
    big = make_batch(9, 3, 7, 5, 9, 2)
    big["labels"][0, :7] = -100
    parts = [{name: t[i : i + 2] for name, t in big.items()} for i in (0, 2, 4)]
    whole, divided = make_model(family), make_model(family)
    undivided = accumulate(whole, [big])
    target = OwnMean(divided) if own_mean else divided
    several = accumulate(target, parts)
    assert takes_num_items(target) is not own_mean
    assert undivided.tokens == several.tokens == int((big["labels"][:, 1:] != -100).sum())
    assert several.loss == pytest.approx(undivided.loss, rel=1e-6)
    for one, other in zip(gradients(whole), gradients(divided), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    # A mean of the microbatches' means is another number: the test can tell the two apart.
    with torch.no_grad():
        means = [float(whole(**part).loss) for part in parts]
    assert sum(means) / 3 != pytest.approx(undivided.loss, rel=1e-4)


def test_the_loss_is_the_mean_over_target_tokens_computed_by_hand(make_model, make_batch) -> None:
    model, batch = make_model(), make_batch(6, 4, prompt=2)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = [
        -float(F.log_softmax(logits[row, column - 1].double(), -1)[label])
        for row, labels in enumerate(batch["labels"].tolist())
        for column, label in enumerate(labels)
        if column > 0 and label != -100
    ]
    step = accumulate(model, [batch])
    assert step.tokens == len(losses) == 4 + 2
    assert step.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_one_batch_has_the_stock_models_gradient_to_the_bit(make_model, make_batch) -> None:
    ours, stock = make_model(), make_model()
    accumulate(ours, [make_batch(5, 5)])
    stock(**make_batch(5, 5), num_items_in_batch=torch.tensor(8)).loss.backward()
    assert all(map(torch.equal, gradients(ours), gradients(stock)))


def test_a_microbatch_without_targets_changes_nothing(make_model, make_batch) -> None:
    with_it, without = make_model(), make_model()
    empty = make_batch(5, 5, seed=3, prompt=5)
    first = accumulate(with_it, [make_batch(5, 5), empty])
    second = accumulate(without, [make_batch(5, 5)])
    assert (first.loss, first.tokens) == (second.loss, second.tokens)
    assert all(map(torch.equal, gradients(with_it), gradients(without)))


def test_a_step_without_any_target_is_an_error(make_model, make_batch) -> None:
    with pytest.raises(DataError, match="no token with loss: all labels are -100"):
        accumulate(make_model(), [make_batch(3, prompt=3)])


def test_a_label_on_the_first_position_is_no_target(make_model, make_batch) -> None:
    batch = make_batch(3, prompt=3)
    batch["labels"][0, 0] = 7
    with pytest.raises(DataError, match="no token with loss"):
        accumulate(make_model(), [batch])


def test_a_loss_that_is_not_finite_runs_no_backward_pass(make_model, make_batch) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="loss of microbatch 1 of 2 is nan"):
        accumulate(model, [make_batch(3), make_batch(3)])
    assert gradients(model) == []
