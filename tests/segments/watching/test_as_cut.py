"""A client model's layers are compared with what they were when the model was cut."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from flower_split import split_model
from flower_split.errors import ModelError
from flower_split.segments import find_layers
from flower_split.segments.watching import LayersAsCut, TensorSample


def check(model: Any, as_cut: LayersAsCut, begun: Any = ()) -> None:
    _, layers = find_layers(model)
    parts = {index: [*layers[index].named_modules()] for index in (0, 3, 4)}
    as_cut.check(model, parts, begun=begun)


def cut() -> tuple[Any, LayersAsCut]:
    client, _ = split_model(tiny_model().requires_grad_(False), 1, 2)
    _, layers = find_layers(client)
    place: Any = layers[1]
    return client, place.as_cut


def all_layers(change: Callable[[Any], None]) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        for index in (0, 3, 4):
            change(model.model.layers[index])

    return act


def scale(layer: Any) -> None:
    layer.mlp.up_proj.weight.data.mul_(0.5)


def replace(layer: Any) -> None:
    layer.mlp.act_fn = nn.ReLU()


def see_both_ways(layer: Any) -> None:
    layer.self_attn.is_causal = False


def round_off(model: Any) -> None:
    model.half().float()


def bend(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def narrow(model: Any) -> None:
    model.config.sliding_window = 3


def replicate(model: Any) -> None:
    layers = model.model.layers
    model.model.layers = nn.ModuleList([*layers, layers[0]])
    model.config.num_hidden_layers = 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (all_layers(scale), "weight of mlp.up_proj was changed in all of the silo's layers after"),
        (all_layers(replace), "the class of mlp.act_fn"),
        (all_layers(see_both_ways), "is_causal of self_attn"),
        (round_off, "weight of self_attn.q_proj"),
        (bend, "inv_freq of model.rotary_emb"),
        (narrow, "sliding_window of the client model's config"),
        (replicate, "has 6 layers, and had 5 when it was cut"),
    ],
    ids=["scaled", "replaced", "seeing", "rounded", "bent", "narrowed", "replicated"],
)
def test_what_was_meant_for_the_whole_model_is_refused(
    change: Callable[[Any], None], words: str
) -> None:
    client, as_cut = cut()
    check(client, as_cut)
    change(client)
    with pytest.raises(ModelError, match=words):
        check(client, as_cut)
    with pytest.raises(ModelError, match=words):
        check(client, copy.deepcopy(as_cut))


def test_what_is_the_silos_own_is_not() -> None:
    client, as_cut = cut()
    scale(client.model.layers[0])
    client.model.norm.weight.data.mul_(2)
    client.resize_token_embeddings(103)
    client.to(torch.bfloat16)
    check(client, as_cut)
    all_layers(scale)(client)
    check(client, as_cut, [id(layer.mlp.up_proj) for layer in client.model.layers[3:]])
    for index in (0, 3, 4):
        client.model.layers[index].mlp.up_proj.requires_grad_(True)
    check(client, as_cut)


def test_a_sample_knows_rounded_values_and_not_offloaded_ones() -> None:
    weight = torch.linspace(0, 1, 200)
    sample = TensorSample(weight)
    assert not sample.is_other(weight.bfloat16())
    assert sample.is_other(weight.bfloat16().float())
    assert TensorSample(torch.zeros(3, device="meta")).seen is None
