"""A round of local training against the stock loop, step by step."""

import math

import pytest
import torch
from torch.optim import SGD, AdamW

from flower_split.errors import ConfigError, DataError, DivergenceError
from flower_split.training import StepReport, steps_in_round, train_round


class SelfClipping(SGD):
    """Reports a norm and clips nothing, as an optimizer of both sides of a cut seems from here."""

    grad_norm = 0.0

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        self.grad_norm += 2.5
        return super().step(closure)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_round_equals_the_stock_loop_to_the_bit(make_model, make_batch, make_config) -> None:
    batches = [make_batch(5, 3, seed=1), make_batch(4, 4, seed=2), make_batch(6, seed=3)]
    ours, stock = make_model(), make_model()
    train_round(
        ours,
        AdamW(ours.parameters(), lr=1.0),
        batches,
        make_config(max_grad_norm=0.1, local_epochs=2, weight_decay=0.0),
    )
    optimizer = AdamW(stock.parameters(), lr=0.01)
    stock.train()
    for batch in batches * 2:
        optimizer.zero_grad()
        targets = (batch["labels"][:, 1:] != -100).sum()
        stock(**batch, use_cache=False, num_items_in_batch=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(stock.parameters(), 0.1)
        optimizer.step()
    assert equal(ours, stock)


@pytest.mark.parametrize(
    ("batches", "options", "steps"),
    [
        (5, {}, 5),
        (6, {"accumulation": 4}, 2),
        (2, {"local_epochs": 3}, 6),
        (5, {"local_epochs": 2, "accumulation": 2}, 6),
        (5, {"local_steps": 7}, 7),
        (1, {"accumulation": 8}, 1),
    ],
)
def test_the_round_has_the_steps_it_says(
    make_model, make_batch, make_config, batches, options, steps
) -> None:
    config = make_config(**options)
    model = make_model()
    reports: list[StepReport] = []
    metrics = train_round(
        model,
        SGD(model.parameters(), lr=1.0),
        [make_batch(3, seed=i) for i in range(batches)],
        config,
        progress=reports.append,
    )
    assert steps_in_round(config, batches) == metrics.steps == len(reports) == steps
    assert [(report.step, report.steps) for report in reports] == [
        (step, steps) for step in range(1, steps + 1)
    ]


def test_metrics_weigh_by_tokens(make_model, make_batch, make_config) -> None:
    short, long = make_batch(3), make_batch(9, 9, seed=1)
    model = make_model()
    metrics = train_round(
        model, SGD(model.parameters(), lr=0.1), [short, long], make_config(learning_rate=0.0)
    )
    with torch.no_grad():
        first, second = float(model(**short).loss), float(model(**long).loss)
    assert (metrics.tokens, metrics.examples, metrics.grad_norm) == (18, 3, None)
    assert metrics.loss == pytest.approx((2 * first + 16 * second) / 18, rel=1e-6)
    assert metrics.seconds > 0
    assert "grad_norm" not in metrics.as_dict()
    assert all(math.isfinite(value) for value in metrics.as_dict().values())


def test_the_schedule_goes_on_over_rounds(make_model, make_batch, make_config) -> None:
    config = make_config(schedule="linear", local_steps=3)
    model, rates = make_model(), list[float]()
    for first in (0, 3, 6):
        metrics = train_round(
            model,
            SGD(model.parameters(), lr=9.0),
            [make_batch(4)],
            config,
            first_step=first,
            total_steps=9,
            progress=lambda report: rates.append(report.learning_rate),
        )
        assert metrics.learning_rate == rates[-1]
    assert rates == pytest.approx([0.01 * (9 - step) / 9 for step in range(9)])


def test_an_optimizer_that_clips_itself_is_left_alone(make_model, make_batch, make_config) -> None:
    config = make_config(max_grad_norm=1e-6, local_steps=3)
    plain, own, free = make_model(), make_model(), make_model()
    clipped = train_round(plain, SGD(plain.parameters(), lr=1.0), [make_batch(4)], config)
    reported = train_round(own, SelfClipping(own.parameters(), lr=1.0), [make_batch(4)], config)
    train_round(free, SGD(free.parameters(), lr=1.0), [make_batch(4)], make_config(local_steps=3))
    assert equal(own, free) and not equal(own, plain)
    assert reported.grad_norm == pytest.approx((2.5 + 5.0 + 7.5) / 3)
    assert clipped.grad_norm is not None and clipped.grad_norm > 0.01


def test_every_module_gets_its_mode_back(make_model, make_batch, make_config) -> None:
    model = make_model().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen: list[bool] = []
    train_round(
        model,
        SGD(model.parameters(), lr=1.0),
        [make_batch(3)],
        make_config(),
        progress=lambda _: seen.append(all(module.training for module in model.modules())),
    )
    assert seen == [True]
    assert [module.training for module in model.modules()] == before


def test_a_loss_that_is_not_finite_names_the_step(make_model, make_batch, make_config) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(DivergenceError, match=r"step 1 of 4 of this round \(step 5 of the run, "):
        train_round(
            model,
            SGD(model.parameters(), lr=1.0),
            [make_batch(3)],
            make_config(local_steps=4),
            first_step=4,
            total_steps=8,
        )


def test_a_gradient_that_is_not_finite_takes_no_step(make_model, make_batch, make_config) -> None:
    model = make_model()
    model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    before = make_model()
    with pytest.raises(DivergenceError, match=r"gradient's norm is (nan|inf), at step 1 of 1"):
        train_round(
            model,
            SGD(model.parameters(), lr=1.0),
            [make_batch(3)],
            make_config(max_grad_norm=1.0),
        )
    assert equal(model, before)


def test_no_batches_is_an_error(make_model, make_config) -> None:
    model = make_model()
    with pytest.raises(DataError, match="no batches to train on"):
        train_round(model, SGD(model.parameters(), lr=1.0), [], make_config(local_steps=3))


def test_batches_that_can_be_iterated_once_only_are_an_error(
    make_model, make_batch, make_config
) -> None:
    model = make_model()
    once_iterator = iter([make_batch(3)])

    class Generator:
        def __len__(self) -> int:
            return 1

        def __iter__(self):  # type: ignore[no-untyped-def]
            return once_iterator

    with pytest.raises(DataError, match="ran out"):
        train_round(model, SGD(model.parameters(), lr=1.0), Generator(), make_config(local_steps=2))


def test_a_warm_up_longer_than_the_run_is_an_error(make_model, make_batch, make_config) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=r"train\.warmup-steps is 9, more than the 1 steps"):
        train_round(
            model, SGD(model.parameters(), lr=1.0), [make_batch(3)], make_config(warmup_steps=9)
        )
