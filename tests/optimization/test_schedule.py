"""Learning-rate schedules: the stock ones, bounded, and continued over rounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from flower_split.config.sections import SCHEDULES
from flower_split.errors import ConfigError
from flower_split.optimization.schedule import learning_rate_factor, make_scheduler

STOCK = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def optimizer(lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
def test_it_is_the_stock_schedule(schedule: str, warmup: int) -> None:
    total, ours, theirs = 20, list[float](), list[float]()
    stepped = optimizer(3e-3)
    stock = get_scheduler(
        STOCK[schedule], stepped, num_warmup_steps=warmup, num_training_steps=total
    )
    for step in range(total):
        theirs.append(stepped.param_groups[0]["lr"])
        ours.append(
            3e-3
            * learning_rate_factor(step, schedule=schedule, warmup_steps=warmup, total_steps=total)
        )
        stepped.step()
        stock.step()
    assert ours == theirs


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 200),
    share=st.floats(0, 1),
    step=st.integers(0, 400),
)
def test_a_factor_is_a_share_that_rises_in_warm_up_and_never_after(
    schedule: str, total: int, share: float, step: int
) -> None:
    warmup = int(share * total)
    now, later = (
        learning_rate_factor(s, schedule=schedule, warmup_steps=warmup, total_steps=total)
        for s in (step, step + 1)
    )
    assert 0.0 <= now <= 1.0
    assert later > now if step + 1 < warmup else later <= now or step + 1 == warmup


@given(schedule=st.sampled_from(["linear", "cosine"]), total=st.integers(1, 99))
def test_a_decay_ends_at_zero_and_stays_there(schedule: str, total: int) -> None:
    for step in (total, total + 1, 3 * total):
        assert learning_rate_factor(step, schedule=schedule, total_steps=total) == pytest.approx(
            0.0, abs=1e-15
        )


def test_known_points() -> None:
    def factors(schedule: str, steps: list[int]) -> list[float]:
        return [
            learning_rate_factor(s, schedule=schedule, warmup_steps=2, total_steps=12)
            for s in steps
        ]

    assert factors("linear", [0, 1, 2, 7, 12]) == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert factors("cosine", [2, 7, 12]) == pytest.approx([1.0, 0.5, 0.0])
    assert factors("constant", [0, 1, 2, 99]) == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounds_go_on_where_the_last_one_ended(schedule: str) -> None:
    def rates(first: int, count: int) -> list[float]:
        stepped, seen = optimizer(), list[float]()
        scheduler = make_scheduler(
            stepped, schedule=schedule, warmup_steps=3, total_steps=12, first_step=first
        )
        for _ in range(count):
            seen.append(stepped.param_groups[0]["lr"])
            stepped.step()
            scheduler.step()
        return seen

    assert rates(0, 4) + rates(4, 4) + rates(8, 4) == rates(0, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "step", "total_steps": 1}, "train.schedule must be one of"),
        ({"schedule": "linear", "total_steps": 0}, "total_steps must be an integer of at least 1"),
        ({"schedule": "linear", "total_steps": 3, "warmup_steps": -1}, "train.warmup-steps must"),
        ({"schedule": "linear", "total_steps": 3, "warmup_steps": 4}, "4, more than the 3 steps"),
    ],
)
def test_arguments_that_contradict_one_another(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        learning_rate_factor(0, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        make_scheduler(optimizer(), **options)  # type: ignore[arg-type]
