"""DP-SGD over the cut equals Opacus on the uncut model, gradient for gradient before the noise."""

from typing import Any

import pytest
import torch
from asking import AS_GRADIENTS
from pairs import Pair, make_batch, make_pair
from torch import Tensor

from flower_split.adapters import adapter_parameters
from flower_split.privacy import PrivacySettings
from flower_split.remote import SplitAdamW, SplitStages
from flower_split.training import Accumulator
from flower_split.training.clipped import example_losses

opacus = pytest.importorskip("opacus")

CLIP, EXPECTED = 0.05, 6
SETTINGS = PrivacySettings(noise=1e-9, clip=CLIP, expected_batch=EXPECTED)


def by_opacus(model: Any, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    trained = {name: p for name, p in adapter_parameters(model) if p.requires_grad}
    watched = opacus.GradSampleModule(model.train(), strict=False, loss_reduction="sum")
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(trained.values(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=EXPECTED,
        loss_reduction="mean",
    )
    for number, batch in enumerate(batches):
        optimizer.signal_skip_step(do_skip=number < len(batches) - 1)
        labels = batch["labels"]
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        example_losses(watched(**inputs).logits, labels)[0].sum().backward()
        optimizer.step()
        if number < len(batches) - 1:
            optimizer.zero_grad()
    found = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    watched.to_standard_module()
    return found


def over_the_cut(pair: Pair, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    pair.client.eval()
    stages = SplitStages(pair.client)
    Accumulator(pair.client, stages=stages, in_flight=2, clipped=True).add(batches)
    optimizer.step()
    own = {
        name: optimizer.state[p]["exp_avg"]
        for name, p in adapter_parameters(pair.client)
        if p.requires_grad
    }
    moments = pair.trunk_moments().items()
    return own | {n.removesuffix("/exp_avg"): t for n, t in moments if n.endswith("/exp_avg")}


@pytest.mark.parametrize("rows", [(6,), (2, 3, 1)])
def test_gradients_are_those_of_opacus(rows: tuple[int, ...]) -> None:
    batches = [make_batch(count, 6 + n, seed=n) for n, count in enumerate(rows)]
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=SETTINGS)
    expected = by_opacus(pair.whole, batches)
    found = over_the_cut(pair, batches)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Opacus divides by |g| + 1e-6
        assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name
