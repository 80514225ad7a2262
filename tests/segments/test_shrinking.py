"""A small twin keeps what decides how a model computes."""

import pytest
from family_table import TYPES, causal_config
from transformers import CONFIG_MAPPING, GPT2Config, LlamaConfig, Qwen2Config

from flower_split.segments.fingerprint import fingerprint
from flower_split.segments.shrinking import MOST_LAYERS, VOCABULARY, WINDOW, shrunk


def test_every_kind_of_layer_stays_in_order() -> None:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    config = CONFIG_MAPPING["qwen3_next"](num_hidden_layers=48, layer_types=kinds * 12)
    twin = shrunk(config)
    assert twin.num_hidden_layers == 4 == len(twin.layer_types)
    assert set(twin.layer_types) == set(kinds)
    assert twin.layer_types[0] == "linear_attention" and twin.layer_types[-1] == "full_attention"


def test_sizes_shrink_and_the_rest_stays() -> None:
    config = Qwen2Config(
        use_sliding_window=True, sliding_window=4096, max_window_layers=8, tie_word_embeddings=True
    )
    before = config.to_dict()
    twin = shrunk(config)
    assert config.to_dict() == before
    assert twin.sliding_window == WINDOW and twin.vocab_size == VOCABULARY
    assert twin.tie_word_embeddings and twin.hidden_act == config.hidden_act
    assert set(twin.layer_types) == set(config.layer_types)


def test_fewer_key_heads_stay_fewer() -> None:
    twin = shrunk(LlamaConfig(num_attention_heads=32, num_key_value_heads=8, hidden_size=4096))
    assert twin.num_key_value_heads < twin.num_attention_heads


def test_dropout_is_off_and_a_model_of_few_layers_gets_more() -> None:
    twin = shrunk(GPT2Config(n_layer=2, resid_pdrop=0.3))
    assert twin.n_layer == 4 and twin.resid_pdrop == twin.embd_pdrop == 0.0


def test_multipliers_of_one_do_not_stay_neutral() -> None:
    config = CONFIG_MAPPING["granite"](residual_multiplier=1.0, embedding_multiplier=12.0)
    twin = shrunk(config)
    assert twin.residual_multiplier != 1.0 and twin.embedding_multiplier == 12.0


def test_more_kinds_than_are_tried_are_refused() -> None:
    layers = MOST_LAYERS + 2
    config = LlamaConfig(num_hidden_layers=layers)
    config.scales_by_layer = [float(i) for i in range(layers)]
    with pytest.raises(ValueError, match=f"of {layers} kinds"):
        shrunk(config)


@pytest.mark.parametrize("model_type", [t for t in TYPES if t in {"bamba", "bert", "dbrx", "lfm2"}])
def test_a_twin_of_a_twin_is_the_same(model_type: str) -> None:
    twin = shrunk(causal_config(model_type))
    assert fingerprint(shrunk(twin)) == fingerprint(twin)
