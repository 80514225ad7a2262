"""A descent says whether it had come to its end, and leaves the best that it has seen."""

import torch

from flower_split.audit.attacks.descent import descend


def test_what_stops_to_fall_has_converged_and_what_still_falls_has_not() -> None:
    place = torch.full((3,), 5.0, requires_grad=True)

    def loss() -> torch.Tensor:
        return place.square().sum() + 1.0

    done = descend([place], loss, rate=0.5, most_steps=400)
    assert done.converged and done.steps < 400
    assert abs(done.loss - 1) < 0.05 and float(loss().detach()) == done.loss
    far = torch.full((3,), 1e4, requires_grad=True)
    under = descend([far], lambda: far.square().sum(), rate=0.1, most_steps=20)
    assert not under.converged and under.steps == 20
    near = descend([place], loss, rate=0.5, most_steps=400, done=2.0)
    assert near.converged and near.steps <= 1
