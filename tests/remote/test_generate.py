"""Stock `generate()` through the trunk, key-value cache on both sides, gives the same tokens."""

import gc
from typing import Any

import pytest
import torch
from pairs import make_pair
from tiny_models import tiny_model

from flower_split.errors import ModelError, TrunkBusyError
from flower_split.transport.messages import SessionLimits

PROMPT = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma2": {
        "sliding_window": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
    },
}
HOW: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 20},
    "uncached": {"do_sample": False, "use_cache": False},
    "several": {"do_sample": True, "num_return_sequences": 2},
}
CASES = [*((how, (1, 2)) for how in HOW), ("beams", (0, 0)), ("greedy", (0, 1)), ("beams", (2, 0))]


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize(("how", "cuts"), CASES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_tokens_equal_the_uncut_models(kind: str, how: str, cuts: tuple[int, int]) -> None:
    pair = make_pair(tiny_model(kind, **SLIDING.get(kind, {})), cuts=cuts)
    made = []
    for model in (pair.client, pair.whole):
        torch.manual_seed(3)
        model.eval()
        made.append(
            model.generate(input_ids=PROMPT, attention_mask=MASK, max_new_tokens=7, **HOW[how])
        )
    assert torch.equal(made[0], made[1])


@pytest.mark.exhaustive
def test_a_cache_that_is_gone_is_freed_at_the_trunk() -> None:
    """There is room for one only: 2 rows of 5 tokens and of 3 that are fed back."""
    pair = make_pair(limits=SessionLimits(max_cached_tokens=16))
    pair.client.eval()

    def generated() -> Any:
        return pair.client.generate(
            input_ids=PROMPT,
            attention_mask=MASK,
            max_new_tokens=4,
            return_dict_in_generate=True,
        )

    for _ in range(3):
        generated()
        gc.collect()
    with torch.no_grad():
        pair.client(input_ids=PROMPT)
    gc.collect()
    kept = generated().past_key_values
    assert kept.get_seq_length() == 8
    with pytest.raises(TrunkBusyError, match="max-cached-tokens"):
        generated()


def test_a_static_cache_is_refused() -> None:
    pair = make_pair()
    with pytest.raises(ModelError, match="DynamicCache"):
        pair.client.generate(
            input_ids=PROMPT, attention_mask=MASK, max_new_tokens=4, cache_implementation="static"
        )


def test_gradients_through_a_filled_cache_are_refused() -> None:
    pair = make_pair()
    first = pair.client(input_ids=PROMPT, use_cache=True)
    with pytest.raises(ModelError, match="filled cache"):
        pair.client(input_ids=PROMPT, past_key_values=first.past_key_values)
