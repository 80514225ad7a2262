"""A token's position, and the edits of a cache, are bounded before anything is made of them."""

import pytest
import torch
from affine_backend import spec
from pairs import make_pair
from several_silos import make_trunk, open_silo
from tiny_models import tiny_model

from flower_split.errors import ModelError, WireError
from flower_split.transport.bounds import MOST_EDITS, beyond_context, check_edits, check_forward
from flower_split.transport.messages import CacheEdit, CacheUse, ForwardRequest, SessionLimits

LIMITS = SessionLimits(max_cached_tokens=24)


def request(
    tokens: int, positions: list[int] | None = None, cache: CacheUse | None = None
) -> ForwardRequest:
    return ForwardRequest(
        step=0,
        microbatch=0,
        hidden=torch.zeros(2, tokens, 4),
        position_ids=None if positions is None else torch.tensor([positions]),
        cache=cache,
    )


@pytest.mark.parametrize(
    ("asked", "past", "words"),
    [
        (request(8), 0, ""),
        (request(9), 0, "0 . 9 tokens up to position 8; the model was made for 8 tokens"),
        (request(1), 7, ""),
        (request(1), 8, "8 . 1 tokens up to position 8; the model was made for 8 tokens"),
        (request(3, [5, 6, 7]), 0, ""),
        (request(3, [0, 1, 8]), 0, "position_ids up to position 8; the model was made for 8"),
        (request(3, [0, 1, 2**31]), 0, "position_ids up to position 2147483648"),
        (request(12, [0, 1, 2, 3, 4, 5] * 2), 0, ""),  # two texts in a row
    ],
)
def test_positions_are_the_models_own(asked: ForwardRequest, past: int, words: str) -> None:
    found = beyond_context(asked, past, 8)
    assert (found == "") if not words else (words.replace(" . ", " + ") in found)
    assert beyond_context(asked, past, 0) == ""


def test_both_ends_refuse_a_text_that_is_longer_than_the_models_context() -> None:
    client = make_pair(tiny_model(max_position_embeddings=8)).client
    client(input_ids=torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ModelError, match="the model was made for 8 tokens"):
        client(input_ids=torch.zeros(1, 9, dtype=torch.long))
    engine = make_trunk(tiny_model(max_position_embeddings=8), None)
    session, width = open_silo(engine, 1), engine.trunk.hidden_size
    session.forward(ForwardRequest(step=0, microbatch=0, hidden=torch.zeros(1, 8, width)))
    with pytest.raises(WireError, match="the model was made for 8 tokens"):
        session.forward(ForwardRequest(step=0, microbatch=1, hidden=torch.zeros(1, 9, width)))


@pytest.mark.parametrize("sizes", [[1] * (MOST_EDITS + 1), [25], [12, 13]])
def test_edits_are_few_and_short(sizes: list[int]) -> None:
    with pytest.raises(WireError, match=f"at most {MOST_EDITS} with 24"):
        check_edits(sizes, LIMITS)
    check_edits([1] * 24, LIMITS)
    with pytest.raises(WireError, match="cache edits"):
        edits = tuple(CacheEdit(kind="reorder", values=(0,) * size) for size in sizes)
        asked = request(1, cache=CacheUse(cache_id=0, past_length=0, edits=edits))
        check_forward(asked, 4, LIMITS, spec())
