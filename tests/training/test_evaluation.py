"""Evaluation against arithmetic made by hand."""

import math

import pytest
import torch

from flower_split.errors import DataError, DivergenceError
from flower_split.optimization.loss import MAX_LOG_PERPLEXITY
from flower_split.training import EvalMetrics, evaluate


def test_it_equals_arithmetic_made_by_hand(make_model, make_batch, family) -> None:
    model = make_model(family).train()
    batches = [make_batch(6, 3, prompt=2), make_batch(4, seed=2), make_batch(4, 4, prompt=4)]
    metrics = evaluate(model, batches)
    losses, hits = list[float](), list[bool]()
    model.eval()
    with torch.no_grad():
        for batch in batches:
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            log_p = logits.double().log_softmax(-1)
            for row, labels in enumerate(batch["labels"].tolist()):
                for column in range(1, len(labels)):
                    if labels[column] != -100:
                        losses.append(-float(log_p[row, column - 1, labels[column]]))
                        hits.append(int(log_p[row, column - 1].argmax()) == labels[column])
    assert (metrics.tokens, metrics.examples) == (len(losses), 5)
    assert metrics.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert metrics.token_accuracy == sum(hits) / len(hits)


def test_batching_changes_nothing(make_model, make_batch) -> None:
    model, batch = make_model(), make_batch(7, 7, 7)
    rows = [{name: t[i : i + 1] for name, t in batch.items()} for i in range(3)]
    one, many = evaluate(model, [batch]), evaluate(model, rows)
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert (many.tokens, many.examples) == (one.tokens, one.examples)


def test_it_leaves_modes_and_gradients_alone(make_model, make_batch) -> None:
    model = make_model().train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    evaluate(model, [make_batch(3)])
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_evaluate_on_is_an_error(make_model, make_batch) -> None:
    for batches in ([], [make_batch(3, prompt=3)]):
        with pytest.raises(DataError, match="no target token to evaluate on"):
            evaluate(make_model(), batches)


def test_a_loss_that_is_not_finite_is_an_error(make_model, make_batch) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="loss over 1 held-out examples is nan"):
        evaluate(model, [make_batch(3)])


def test_perplexity_is_finite_in_float32() -> None:
    metrics = EvalMetrics(loss=1e6, token_accuracy=0.0, tokens=1, examples=1)
    assert metrics.perplexity == math.exp(MAX_LOG_PERPLEXITY)
    assert bool(torch.tensor(metrics.perplexity, dtype=torch.float32).isfinite())
    assert metrics.as_dict() == {
        "loss": 1e6,
        "perplexity": metrics.perplexity,
        "token_accuracy": 0.0,
        "tokens": 1,
        "examples": 1,
    }
