"""Least squares say whether they had come to their end, and leave the best that they have seen."""

import torch

from flower_split.audit.attacks.least_squares import Solved, solve

SEEN = torch.tensor([[0.5, -0.25, 0.125], [0.3, 0.2, -0.6]])
STIFF = torch.tensor([1.0, 0.03, 0.001])


def residuals(at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Of places that are bent, and hardly told in one direction."""
    return STIFF * (torch.tanh(at) - SEEN[rows])


def solved(of=residuals, done: float = 0.0, most_steps: int = 400) -> Solved:
    return solve(of, torch.zeros(2, 3), done=done, most_steps=most_steps)


def test_places_are_found_though_hardly_told_in_one_direction() -> None:
    made = solved(done=1e-12)
    assert made.converged and made.steps < 100
    assert float((torch.tanh(made.at) - SEEN).abs().max()) < 1e-2


def test_what_stops_to_fall_has_converged_and_what_still_falls_has_not() -> None:
    def apart(at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([residuals(at, rows), torch.ones(len(rows), 1)], 1)

    made = solved(of=apart)
    assert made.converged and made.steps < 400
    assert torch.allclose(made.errors, torch.ones(2), atol=1e-3)
    assert torch.equal(apart(made.at, torch.arange(2)).square().sum(1), made.errors)
    under = solved(most_steps=1)
    assert not under.converged and under.steps == 1


def test_what_is_asked_for_ends_it() -> None:
    begun = float((STIFF * SEEN).square().sum())
    made = solved(done=begun)
    assert made.converged and not made.steps and not made.at.any()
    made = solved(done=begun / 100)
    assert made.converged and 0 < float(made.errors.sum()) <= begun / 100


def test_a_step_too_far_is_damped_and_not_taken_for_the_end() -> None:
    def far(at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.atan(at - 3)  # of which the linear part leads away from far off

    made = solved(of=far, done=1e-8)
    assert made.converged and torch.allclose(made.at, torch.full((2, 3), 3.0), atol=1e-3)
