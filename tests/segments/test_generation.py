"""Greedy generation through the in-process transport gives the uncut model's tokens."""

import pytest
import torch
from tiny_models import CASES, Case

from flower_split.remote import attach_trunk
from flower_split.segments import split_model
from flower_split.server.local import LocalTransport

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 12, 13, 14, 15]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])


# Where the trunk has layer 0, the silo's cache has only stand-ins to read positions from.
SEVERAL_CUTS = {"bloom", "falcon-alibi", "gemma2", "gpt_neo", "gptj", "opt", "smollm3"}
RUNS = [(case, (0, 1)) for case in CASES]
RUNS += [(case, cuts) for case in CASES if case.name in SEVERAL_CUTS for cuts in ((1, 1), (2, 0))]


@pytest.mark.sampled(keep=17)
@pytest.mark.parametrize(
    ("case", "cuts"), RUNS, ids=[f"{case.name}-{k}-{m}" for case, (k, m) in RUNS]
)
def test_greedy_tokens_equal_the_uncut_models(case: Case, cuts: tuple[int, int]) -> None:
    model = case.model(eos_token_id=None)
    client, trunk = split_model(model, *cuts)
    attach_trunk(client, LocalTransport(trunk))
    made = [
        party.generate(
            input_ids=PROMPT,
            attention_mask=MASK,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for party in (client, model)
    ]
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(made[0].logits, made[1].logits, strict=True))
