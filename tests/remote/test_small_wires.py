"""Training over a coarse wire ends where training over float32 ends."""

import pytest
import torch
from pairs import make_batch, make_pair
from tiny_models import tiny_model
from transformers import LlamaForCausalLM

from flower_split.config.sections import WireConfig
from flower_split.remote import SplitAdamW

STEPS, RATE = 40, 5e-3


def lively_llama() -> LlamaForCausalLM:
    """A model whose logits differ from token to token, so that LoRA has something to work with."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


def losses(codec: str) -> tuple[float, float]:
    """Mean loss of two batches, before and after learning them by heart."""
    wire = WireConfig.uniform(codec)
    model = make_pair(lively_llama(), wire=wire).client
    batches = [make_batch(rows=4, tokens=16, seed=seed) for seed in range(2)]

    def mean_loss() -> float:
        with torch.no_grad():
            return sum(float(model(**batch).loss) for batch in batches) / len(batches)

    before = mean_loss()
    optimizer = SplitAdamW(model, lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        model(**batches[step % 2]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, mean_loss()


@pytest.mark.sampled(keep=1)
@pytest.mark.slow
@pytest.mark.parametrize(("codec", "tolerance"), [("int8", 0.01), ("nf4", 0.1)])
def test_the_final_loss_is_that_of_fp32(codec: str, tolerance: float) -> None:
    before, exact = losses("fp32")
    assert exact < 0.6 * before
    _, coarse = losses(codec)
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=tolerance)
