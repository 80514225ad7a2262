"""What a row computes depends on no other silo's rows, in the same batch or before it."""

from typing import Any

import pytest
import torch
from several_silos import TOGETHER, Made, make_trunk, open_silo, passes
from tiny_models import CASES, Case

from flower_split.config.sections import LoraSettings
from flower_split.segments import split_model
from flower_split.transport.messages import ForwardRequest

HALF = 4  # of a head of 8
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * HALF,
        "long_factor": [4.0] * HALF,
        "factor": 8.0,
        "original_max_position_embeddings": 8,
    },
    "head_dim": 8,
    "original_max_position_embeddings": 8,
}
LLAMA, PHI3, GEMMA3 = (
    next(case for case in CASES if case.model_type == kind)
    for kind in ("llama", "phi3", "gemma3_text")
)
BY_LAYER = {
    "rope_parameters": {
        "full_attention": LONGROPE["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "head_dim": 8,
    "original_max_position_embeddings": 8,
}


def request(tokens: int, width: int) -> ForwardRequest:
    hidden = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(tokens))
    return ForwardRequest(
        step=0,
        microbatch=0,
        hidden=hidden,
        attention_mask=torch.ones(1, tokens, dtype=torch.bool),
        position_ids=torch.arange(tokens)[None],
        keep_graph=True,
    )


def of_two(case: Case, lengths: tuple[int, int], *, together: bool, **changes: Any) -> list[Made]:
    """What silos with texts of `lengths` get from a trunk that may compute them together."""
    model = case.model(**changes)
    lora = LoraSettings(r=2, alpha=4.0, dropout=0.0, target_modules=("o_proj",))
    engine = make_trunk(model, TOGETHER if together else None, lora=lora)
    silos = [open_silo(engine, seed) for seed in (1, 2)]
    forwards = [request(tokens, model.config.hidden_size) for tokens in lengths]
    return passes(silos, forwards, [torch.ones_like(one.hidden) for one in forwards])


@pytest.mark.parametrize(
    ("case", "changes"),
    [(PHI3, LONGROPE), (LLAMA, LONGROPE), (GEMMA3, BY_LAYER)],
    ids=["phi3", "llama", "a kind of layer"],
)
def test_a_long_text_beside_it_leaves_a_short_one_of_longrope_to_the_bit(
    case: Case, changes: dict[str, Any]
) -> None:
    """With 8 positions for the short factors; so little padding would be taken in a batch."""
    together = of_two(case, (7, 9), together=True, **changes)
    alone = of_two(case, (7, 9), together=False, **changes)
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.h2, theirs.h2)
        assert torch.equal(ours.g1, theirs.g1)
        assert all(map(torch.equal, ours.gradients, theirs.gradients))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_pass_after_a_longer_one_is_as_before(case: Case) -> None:
    """So no layer keeps anything of a pass, such as frequencies of the longest text so far."""
    _, trunk = split_model(case.model(), 1, 1)
    short, long = (request(tokens, trunk.hidden_size) for tokens in (5, 40))
    with torch.no_grad():
        made = [
            trunk(
                one.hidden,
                attention_mask=torch.ones(1, one.hidden.shape[1], dtype=torch.long),
                position_ids=one.position_ids,
            )
            for one in (short, long, short)
        ]
    assert torch.equal(made[0], made[2])
