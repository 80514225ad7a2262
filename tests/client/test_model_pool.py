import gc
import os
import shutil
import weakref

import pytest
import torch

from flower_split.client.model_pool import (
    borrowed_model,
    drop_models,
    held_models,
    keep_models,
)
from flower_split.config.model import CutConfig
from flower_split.config.run_config import read_run_config


@pytest.fixture
def config(run_config):
    return read_run_config(run_config)


def test_a_model_is_loaded_once_for_one_after_the_other(config):
    with borrowed_model(config) as first:
        pass
    with borrowed_model(config) as second:
        assert second is first


def test_two_at_once_have_a_model_each(config):
    with borrowed_model(config) as first, borrowed_model(config) as second:
        assert second.model is not first.model


def test_a_model_whose_session_failed_is_not_used_again(config):
    with pytest.raises(KeyError), borrowed_model(config) as first:
        raise KeyError
    with borrowed_model(config) as second:
        assert second is not first


@pytest.mark.medium
def test_another_run_in_the_same_process_frees_the_first_ones_models(config, run_config):
    with borrowed_model(config) as first:
        freed = weakref.ref(first.model)
    del first
    other = read_run_config({**run_config, "lora.r": 3})
    with borrowed_model(other) as second:
        pass
    gc.collect()
    assert freed() is None
    with borrowed_model(other) as again:
        assert again is second


def test_settings_that_the_model_does_not_depend_on_share_it(config, run_config):
    with borrowed_model(config) as first:
        pass
    with borrowed_model(read_run_config({**run_config, "train.batch-size": 1})) as second:
        assert second is first


def test_the_share_is_what_the_silo_holds_of_the_uncut_model(config, tiny):
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tiny / "model")
    total = sum(parameter.numel() for parameter in whole.parameters())
    trunk = sum(p.numel() for layer in whole.model.layers[1:3] for p in layer.parameters())
    with borrowed_model(config) as held:
        assert held.share == pytest.approx((total - trunk) / total)


def test_gradients_do_not_go_from_one_borrower_to_the_next(config):
    with borrowed_model(config) as first:
        for parameter in first.model.parameters():
            parameter.grad = torch.ones_like(parameter)
    with borrowed_model(config) as second:
        assert second is first
        assert all(parameter.grad is None for parameter in second.model.parameters())


def second_adapter(model):
    model.add_adapter("ref", model.peft_config["default"])


def another_scale(model):
    for layer in model.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(2.0)


def another_head(model):
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [
        second_adapter,
        another_scale,
        another_head,
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.get_output_embeddings().weight.requires_grad_(True),
    ],
)
def test_a_model_that_was_changed_is_not_used_again(config, change):
    with borrowed_model(config) as first:
        change(first.model)
    with borrowed_model(config) as second:
        assert second is not first
        assert list(second.model.peft_config) == ["default"]


@pytest.fixture
def keeping():
    """Keeps models of several runs for a test, up to so many bytes."""
    drop_models()
    yield keep_models
    keep_models(None)
    drop_models()


def borrow(run_config, rank):
    """The model of a run with adapters of that rank, lent and given back."""
    with borrowed_model(read_run_config({**run_config, "lora.r": rank})) as held:
        return held


@pytest.mark.medium
def test_up_to_a_bound_the_models_of_several_runs_are_kept(run_config, keeping):
    keeping(1 << 30)
    first, second = borrow(run_config, 2), borrow(run_config, 3)
    assert borrow(run_config, 2) is first and borrow(run_config, 3) is second
    names = [(one.name, one.bottom_layers, one.top_layers) for one in held_models()]
    assert names == [(run_config["model.name"], 1, 1)] * 2


@pytest.mark.medium
def test_beyond_the_bound_the_longest_unused_model_goes_first(run_config, keeping):
    keeping(1 << 30)
    first, second = borrow(run_config, 2), borrow(run_config, 3)
    sizes = [one.num_bytes for one in held_models()]
    assert borrow(run_config, 2) is first
    keeping(sum(sizes) + 1)
    third = borrow(run_config, 4)
    assert sum(one.num_bytes for one in held_models()) <= sum(sizes) + 1
    assert borrow(run_config, 4) is third
    assert borrow(run_config, 3) is not second


def test_a_model_beyond_the_bound_is_not_kept(run_config, keeping):
    keeping(10)
    first = borrow(run_config, 2)
    assert held_models() == []
    assert borrow(run_config, 2) is not first


def test_the_bytes_of_a_model_are_those_of_its_tensors(run_config, keeping):
    keeping(1 << 30)
    model = borrow(run_config, 2).model
    tensors = {one.data_ptr(): one.nbytes for one in (*model.parameters(), *model.buffers())}
    assert [one.num_bytes for one in held_models()] == [sum(tensors.values())]


def test_a_model_whose_files_were_changed_is_loaded_anew(run_config, tiny, tmp_path):
    shutil.copytree(tiny / "model", tmp_path / "model")
    config = read_run_config({**run_config, "model.name": str(tmp_path / "model")})
    with borrowed_model(config) as first:
        pass
    with borrowed_model(config) as second:
        assert second is first
    weights = tmp_path / "model" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    with borrowed_model(config) as third:
        assert third is not first


def test_a_cut_of_the_silos_own_is_a_model_of_its_own(config):
    """Which the service tells apart by their layers; the run's own is another one."""
    wider = CutConfig(bottom_layers=2, top_layers=1)
    keep_models(1 << 30)
    with borrowed_model(config) as first, borrowed_model(config, cut=wider) as second:
        assert second.share > first.share
    with borrowed_model(config, cut=wider) as again:
        assert again is second
    layers = {(held.bottom_layers, held.top_layers) for held in held_models()}
    assert layers == {(1, 1), (2, 1)}
    drop_models()
    keep_models(None)
