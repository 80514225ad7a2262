import logging
import socket

import pytest
import torch
from flwr.supercore.exit import exit_handler
from hosting import nothing_left
from task_models import save_task_model
from tiny_checkpoint import save_tiny_model
from transformers import BertModel

from flower_split.config.run_config import read_run_config
from flower_split.errors import AdapterError, ConfigError, CutError
from flower_split.strategies import TrunkHost
from flower_split.strategies.hosting.adapter_parts import to_arrays
from flower_split.strategies.hosting.host import _close_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(folder):
    def make(**changes):
        return read_run_config({"model.name": str(folder), "lora.r": 2, **changes})

    return make


def answers(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def is_trunk(name):
    return ".layers.1." in name or ".layers.2." in name


def test_the_trunk_is_served_inside_the_context_only(config):
    with nothing_left(), TrunkHost(config()) as host:
        assert answers(host.address)
    assert not answers(host.address)


def test_what_bounds_the_sequences_below_max_length_is_logged(config, caplog):
    caplog.set_level(logging.INFO, logger="flower_split")
    with TrunkHost(config(**{"train.max-length": 1024})):
        pass
    assert "train.max-length 1024 is more than" in caplog.text
    assert "cut off at 256 tokens" in caplog.text


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (
            "llama",
            {
                "model.task": "sequence-classification",
                "model.labels": "no, yes",
                "lora.target-modules": "q_proj",
                "split.bottom-layers": 0,
                "split.top-layers": 0,
            },
            "name a target module among its layers, or move the cut",
        ),
        ("bert", {"model.task": "masked-lm", "lora.target-modules": "query"}, "lacks 'cls"),
    ],
)
def test_what_no_silo_can_wrap_is_told_before_any_is_asked(tmp_path, family, changes, said):
    folder = save_task_model(tmp_path / family, family)
    if family == "bert":  # as published encoders are: without a head
        BertModel.from_pretrained(folder).save_pretrained(folder)
    given = read_run_config({"model.name": str(folder), "train.max-length": 16, **changes})
    with nothing_left(), pytest.raises(AdapterError, match=said), TrunkHost(given):
        pass


def test_it_is_closed_when_flower_ends_the_process(config):
    registered = [handler.exit_handler for handler in exit_handler.registered_exit_handlers]
    assert _close_all in registered
    with TrunkHost(config()) as host:
        _close_all()
        assert not answers(host.address)


@pytest.mark.parametrize("mode", ["federated", "shared", "frozen"])
def test_who_sees_which_tensors(config, mode):
    with TrunkHost(config(**{"trunk.adapters": mode})) as host:
        arrays = host.begin(None)
        seen, exported = list(arrays), list(host.adapter(arrays))
        assert seen == list(host.parts.shapes)
        assert not any(map(is_trunk, host.parts.silo_shapes))
        assert any(map(is_trunk, seen)) == (mode == "federated")
        assert any(map(is_trunk, exported)) == (mode != "frozen")
        assert tuple(exported) == host.plan.names


@pytest.mark.medium
def test_the_adapter_to_start_from_follows_the_seed(config):
    def initial(seed):
        with TrunkHost(config(seed=seed)) as host:
            return host.adapter(host.begin(None))

    one, same, other = initial(1), initial(1), initial(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_shared_trunk_starts_from_the_adapter_that_is_given(config):
    with TrunkHost(config(**{"trunk.adapters": "shared"})) as host:
        names = host.plan.names
        given = {name: torch.full(shape, 0.5) for name, shape in host.plan.shapes if name in names}
        arrays = host.begin(to_arrays(given))
        assert not any(map(is_trunk, arrays))
        assert all(bool((tensor == 0.5).all()) for tensor in host.adapter(arrays).values())
        again = host.adapter(host.begin(None))
        assert not any(bool((tensor == 0.5).all()) for tensor in again.values())


def test_an_adapter_that_does_not_fit_is_refused(config):
    with TrunkHost(config()) as host, pytest.raises(AdapterError, match="missing"):
        host.begin(to_arrays({"x": torch.zeros(1)}))


def test_a_port_in_use_is_said_at_once(config):
    with TrunkHost(config()) as first:
        port = int(first.address.rpartition(":")[2])
        with nothing_left(), pytest.raises(ConfigError, match=str(port)):
            TrunkHost(config(**{"trunk.port": port})).__enter__()


def test_cuts_outside_the_model_are_said_at_once(config):
    with pytest.raises(CutError, match="4"):
        TrunkHost(config(**{"split.bottom-layers": 3})).__enter__()
