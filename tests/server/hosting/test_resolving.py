"""What a run's adapter is, and which of its tensors are the trunk's, before it is hosted."""

import logging

import pytest
import torch
from tiny_checkpoint import save_tiny_model

from flower_split.config.run_config import read_run_config
from flower_split.errors import ConfigError, CutError, ModelError
from flower_split.server.hosting.resolving import load_run_trunk, load_run_trunks, resolve_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("resolved"), layers=4))


def config(model, **changes):
    cuts = {"split.bottom-layers": 1, "split.top-layers": 1, "lora.r": 2, "train.max-length": 16}
    return read_run_config({"model.name": model, **cuts, **changes})


def test_the_trunks_tensors_and_the_silos_make_up_the_adapter(model):
    layout = resolve_run(config(model)).layout
    assert {name.split(".layers.")[1][0] for name in layout.trunk_names} == {"1", "2"}
    assert {*layout.silo_shapes} | {*layout.trunk_names} == {*layout.plan.names}
    assert {*layout.silo_shapes} & {*layout.trunk_names} == set()
    again = resolve_run(config(model)).layout.initial
    assert all(torch.equal(tensor, again[name]) for name, tensor in layout.initial.items())


def test_a_frozen_trunk_has_none_of_it(model):
    layout = resolve_run(config(model, **{"trunk.adapters": "frozen"})).layout
    assert layout.trunk_names == () and {*layout.silo_shapes} == {*layout.initial}
    assert {name.split(".layers.")[1][0] for name in layout.initial} == {"0", "3"}


def test_texts_that_the_context_has_no_room_for_are_told(model, caplog):
    with caplog.at_level(logging.INFO):
        resolve_run(config(model, **{"train.max-length": 1024, "train.batch-size": 1}))
    assert "train.max-length 1024 is more than the model's context" in caplog.text


def test_cuts_that_leave_no_trunk_are_refused_before_it_is_made(model):
    made = []
    with pytest.raises(ModelError):
        resolve_run(config(model, **{"split.bottom-layers": 4}), lambda one: made.append(one))
    assert made == []
    assert load_run_trunk(config(model)).cuts.trunk_range == range(1, 3)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"trunk.devices": "cuda:17, cuda:18"}, ConfigError, "--devices is 'cuda:17'"),
        ({"trunk.device": "cuda:17"}, ConfigError, "--device is 'cuda:17'"),
        ({"trunk.devices": "cpu, cpu, cpu"}, ConfigError, "--devices makes 3 stages .* 2 layers"),
        ({"trunk.devices": "cpu, cpu", "split.bottom-layers": 3}, CutError, "leave no layer"),
    ],
)
def test_a_trunk_is_loaded_for_many_runs_or_refused_by_its_option(model, changes, kind, said):
    with pytest.raises(kind, match=said):
        load_run_trunks(config(model, **changes), key="--device")
    stages = load_run_trunks(config(model, **{"trunk.devices": "cpu, cpu"}), key="--device")
    assert [stage.cuts.trunk_range for stage in stages] == [range(1, 2), range(2, 3)]
