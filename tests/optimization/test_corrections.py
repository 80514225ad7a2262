"""SCAFFOLD's and FedProx's terms, step by step against their formulas."""

import torch
from torch import nn

from flower_split.optimization.corrections import Corrections

GRADIENTS = torch.tensor([[1.0, 2.0], [3.0, 0.0], [-1.0, 4.0]])


def steps(corrections, parameter, gradients=GRADIENTS):
    """The gradients as corrected."""
    corrected = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        corrections.apply()
        corrected.append(parameter.grad.clone())
    return torch.stack(corrected)


def test_a_first_round_corrects_nothing_and_learns_the_mean_gradient():
    parameter = nn.Parameter(torch.zeros(2))
    corrections = Corrections({"x": parameter}, common={"x": torch.zeros(2)})
    assert torch.equal(steps(corrections, parameter), GRADIENTS)
    assert torch.equal(corrections.next_own()["x"], GRADIENTS.mean(0))
    assert torch.equal(corrections.change()["x"], GRADIENTS.mean(0))


def test_a_later_round_steps_by_g_minus_own_plus_common():
    own, common = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    parameter = nn.Parameter(torch.zeros(2))
    corrections = Corrections({"x": parameter}, common={"x": common}, own={"x": own})
    assert torch.equal(steps(corrections, parameter), GRADIENTS - own + common)
    assert torch.equal(corrections.next_own()["x"], GRADIENTS.mean(0))
    assert torch.equal(corrections.change()["x"], GRADIENTS.mean(0) - own)


def test_what_was_given_stays_as_it_is():
    own, common = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    before = own.clone(), common.clone()
    parameter = nn.Parameter(torch.zeros(2))
    corrections = Corrections({"x": parameter}, common={"x": common}, own={"x": own})
    steps(corrections, parameter)
    assert torch.equal(own, before[0]) and torch.equal(common, before[1])


def test_the_proximal_term_pulls_to_what_was_received():
    parameter = nn.Parameter(torch.tensor([1.0, 1.0]))
    corrections = Corrections({"x": parameter}, proximal_mu=0.5)
    with torch.no_grad():
        parameter += torch.tensor([2.0, -4.0])
    corrected = steps(corrections, parameter, torch.zeros(1, 2))
    assert torch.equal(corrected, torch.tensor([[1.0, -2.0]]))


def test_a_step_that_is_not_taken_does_not_count():
    parameter = nn.Parameter(torch.zeros(2))
    corrections = Corrections({"x": parameter}, common={"x": torch.zeros(2)})
    steps(corrections, parameter)
    steps(corrections, parameter, torch.tensor([[5.0, 5.0]]))
    corrections.take_back()
    assert torch.equal(corrections.next_own()["x"], GRADIENTS.mean(0))
