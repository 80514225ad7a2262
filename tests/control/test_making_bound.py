"""What a run's adapter may cost as it is made, in bytes and in seconds."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model

from flower_split.control.making_bound import LEAST_BYTES, MakingBound
from flower_split.errors import TrunkBusyError

HUGE = 1 << 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(HUGE),
        lambda: torch.zeros(1 << 20, 1 << 20),
        lambda: torch.eye(1 << 20),
        lambda: torch.arange(HUGE),
        lambda: torch.empty(HUGE, device="meta").new_empty((HUGE,), device="cpu"),
        lambda: torch.empty_like(torch.empty(HUGE, device="meta"), device="cpu"),
        lambda: torch.ones(1).expand(HUGE).clone(),
        lambda: torch.ones(1 << 16, 1) @ torch.ones(1, 1 << 16),
        lambda: [torch.empty(LEAST_BYTES // 8, dtype=torch.uint8) for _ in range(9)],
    ],
)
def test_too_much_is_refused_before_it_is_allocated(make):
    with MakingBound(1, 60.0), pytest.raises(TrunkBusyError, match="--run-gib"):
        make()


def test_what_takes_no_memory_counts_nothing():
    with MakingBound(1, 60.0):
        torch.empty(HUGE, device="meta").clone()
        torch.ones(1).expand(HUGE)[:3].clone()


def test_peft_makes_within_it_what_it_makes_without():
    def made():
        torch.manual_seed(1)
        model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear"))
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    plain = made()
    with MakingBound(1, 60.0):
        bounded = made()
    assert all(torch.equal(plain[name], bounded[name]) for name in plain)


def test_time_counts_in_it_and_not_between():
    now = [0.0]
    bound = MakingBound(1, 20.0, clock=lambda: now[0])
    for _ in range(2):
        with bound:
            now[0] += 9.0
            torch.ones(1)
        now[0] += 100.0
    with bound:
        now[0] += 9.0
        with pytest.raises(TrunkBusyError, match="20 s"):
            torch.ones(1)
