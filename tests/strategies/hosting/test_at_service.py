"""A run whose trunk service ends and comes back: it goes on, and yields what it would have."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam
from split_run import run_split
from steps import KEEPING, SILOS, run_config
from tiny_checkpoint import save_tiny_model
from trunk_services import at, serving

from flower_split.errors import TrunkRestartedError

PATIENT = {"trunk.service-timeout": 30.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


class Restarts:
    """A service that ends, and comes back at the same ports, as a silo begins a round.

    Args:
        values: Of the run.
        times: How often it ends.
        devices: That hold its trunk, and when it has come back.
    """

    def __init__(self, values, *, times=1, devices=("cpu", "cpu")):
        self._values, self._times = values, times
        first, self._then = devices
        self._context = serving(values, amid_a_run=True, devices=first)
        self.server = self._context.__enter__()
        self.count = 0

    def __call__(self, message, context):
        fields = message.content["config"]
        first = (fields["split.round"], context.node_config["partition-id"]) == (2, 1)
        if first and message.metadata.message_type == "train" and self.count < self._times:
            self.count += 1
            ports = {"data": self.server.address, "control": self.server.control_address}
            self.close()
            self._context = serving(self._values, amid_a_run=True, devices=self._then, **ports)
            self.server = self._context.__enter__()

    def close(self):
        self._context.__exit__(None, None, None)


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    ("mode", "devices"),
    [
        ("federated", ("cpu", "cpu")),
        ("shared", ("cpu", "cpu")),
        ("federated", ("cpu, cpu", "cpu")),
        ("shared", ("cpu", "cpu, cpu")),
    ],
)
def test_the_round_is_done_again_at_a_service_that_came_back(folder, mode, devices, caplog):
    values = run_config(folder, **KEEPING, **{"trunk.adapters": mode, **PATIENT})
    strategy = {"fraction_evaluate": 0.0, "eta": 1e-2, "min_train_nodes": SILOS}
    theirs, _ = run_split(values, FedAdam(**strategy))
    restarts = Restarts(values, devices=devices)
    try:
        ours, _ = run_split(at(restarts.server, values), FedAdam(**strategy), before=restarts)
    finally:
        restarts.close()
    assert restarts.count == 1
    assert "sessions are lost" in caplog.text
    for name, tensor in theirs.adapter.items():
        assert np.array_equal(ours.adapter[name].numpy(), tensor.numpy()), name
    assert [r.failure for r in ours.history] == [r.failure for r in theirs.history]


def test_a_service_that_never_lasts_ends_the_run(folder, monkeypatch):
    monkeypatch.setattr("flower_split.strategies.checkpoints.run_checkpoints.MOST_RESTARTS", 1)
    values = run_config(folder, **KEEPING, **PATIENT)
    restarts = Restarts(values, times=5)
    try:
        with pytest.raises(TrunkRestartedError, match="after round 1"):
            run_split(at(restarts.server, values), before=restarts)
    finally:
        restarts.close()
