"""Stand-ins in a key-value cache answer what the stock code asks of layers that are elsewhere."""

import pytest
import torch
from tiny_models import CASE_BY_NAME
from transformers.cache_utils import DynamicCache, StaticCache

from flower_split.errors import ModelError
from flower_split.segments.cache import place_stand_ins


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_stand_in_answers_as_the_layer_it_stands_for(name: str) -> None:
    config = CASE_BY_NAME[name].config()
    real, mine = DynamicCache(config=config), DynamicCache(config=config)
    stand_ins = place_stand_ins(mine, range(0, 2))
    for tokens in (3, 1, 4, 1, 2):
        for query in (1, 3):
            for layer in (0, 1):
                assert mine.get_mask_sizes(query, layer) == real.get_mask_sizes(query, layer)
                assert mine.get_query_offset(layer) == real.get_query_offset(layer)
                assert mine.get_seq_length(layer) == real.get_seq_length(layer)
        keys = torch.zeros(1, 2, tokens, 4)
        for layer in (0, 1):
            real.update(keys, keys, layer)
            stand_ins[layer].advance(tokens)
    assert mine.is_sliding[:2] == real.is_sliding[:2]


def test_only_the_first_reports_edits() -> None:
    edits: list[tuple[str, tuple[int, ...]]] = []
    cache = DynamicCache(config=CASE_BY_NAME["llama"].config())
    stand_ins = place_stand_ins(cache, range(1, 3), lambda *edit: edits.append(edit))
    for layer in stand_ins:
        layer.advance(5)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-2)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2]))
    assert [layer.get_seq_length() for layer in stand_ins] == [3, 3]
    cache.reset()
    assert edits == [
        ("reorder", (1, 0)),
        ("crop", (2,)),
        ("repeat", (3,)),
        ("select", (2,)),
        ("reset", ()),
    ]


def test_placed_stand_ins_are_kept() -> None:
    cache = DynamicCache(config=CASE_BY_NAME["llama"].config())
    assert place_stand_ins(cache, range(1, 3)) == place_stand_ins(cache, range(1, 3))


def test_keys_of_an_absent_layer_are_refused() -> None:
    cache = DynamicCache(config=CASE_BY_NAME["llama"].config())
    place_stand_ins(cache, range(0, 2))
    keys = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ModelError, match="another party"):
        cache.update(keys, keys, 1)


def test_a_cache_that_cannot_be_shared_is_refused() -> None:
    config = CASE_BY_NAME["llama"].config()
    with pytest.raises(ModelError, match="not StaticCache"):
        place_stand_ins(StaticCache(config=config, max_cache_len=8), range(0, 2))
    cache = DynamicCache(config=config)
    keys = torch.zeros(1, 2, 3, 8)
    cache.update(keys, keys, 0)
    with pytest.raises(ModelError, match="needs a new DynamicCache"):
        place_stand_ins(cache, range(0, 2))
