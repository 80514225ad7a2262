"""Whole runs in which the silos have the model from the server, and none that they could load."""

import hashlib
import itertools
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from delivering import as_in_another_process, left
from flwr.serverapp.strategy import FedAvg
from hosting import is_free, nothing_left
from in_process_grid import InProcessGrid
from tiny_checkpoint import save_texts, save_tiny_model

from flower_split.apps.client_app import app
from flower_split.apps.results import run_result
from flower_split.config.run_config import read_run_config
from flower_split.delivery.cache import PartCache
from flower_split.errors import RoundError
from flower_split.strategies import SplitStrategy
from flower_split.transport.grpc.delivery import GrpcDelivery

NUMBERS = itertools.count()
"""Of models; what a process keeps loaded, it finds by their names."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder / "model")
    save_texts(folder / "texts.jsonl")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs a federation; `streams` counts the streams that silos opened to fetch the model."""
    streams, names = [], []
    make = GrpcDelivery.__init__

    def counting(self, *arguments, **options):
        streams.append(arguments)
        make(self, *arguments, **options)

    monkeypatch.setattr(GrpcDelivery, "__init__", counting)

    def forget():
        """Know no more than another process would: nothing loaded, nothing verified."""
        names.append(f"nobody/has-such-a-model-{next(NUMBERS)}")
        if (tmp_path / "cache").exists():
            as_in_another_process(PartCache(tmp_path / "cache"))

    def start(delivery="server", *, name=None, silo=None, node=None, grid=None, **changes):
        streams.clear()
        values = {
            "model.delivery": delivery,
            "data.path": str(folder / "texts.jsonl"),
            "data.eval-fraction": 0.25,
            "train.batch-size": 3,
            "train.max-length": 16,
            "lora.r": 2,
            "num-server-rounds": 2,
            "round-timeout": 60.0,
            "strategy.min-nodes": 3,
            **changes,
        }
        node_config = {
            "cache-dir": str(tmp_path / "cache"),
            "state-dir": str(tmp_path / "state"),
            **(node or {}),
        }
        run_config = {**values, "model.name": name or names[-1], **(silo or {})}
        in_process = InProcessGrid(
            app, 3, run_config=run_config, node_config=node_config, **(grid or {})
        )
        config = read_run_config({**values, "model.name": str(folder / "model")})
        strategy = SplitStrategy(config, FedAvg())
        with nothing_left():
            try:
                strategy.start(in_process)
            finally:
                addresses = {
                    config["split.address"]
                    for message in in_process.sent
                    for config in message.content.config_records.values()
                }
                assert all(is_free(int(a.rpartition(":")[2])) for a in addresses)
        return SimpleNamespace(result=strategy.result, streams=list(streams), sent=in_process.sent)

    forget()
    start.forget = forget
    return start


@pytest.mark.exhaustive
def test_it_learns_what_a_run_with_local_models_learns(run, folder, tmp_path, caplog):
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    local = run("local", name=str(folder / "model"))
    assert not local.streams and not (tmp_path / "cache").exists()
    run.forget()
    with caplog.at_level(logging.DEBUG):
        delivered = run("server")
    assert delivered.result.adapter.keys() == local.result.adapter.keys()
    for name, tensor in delivered.result.adapter.items():
        assert torch.equal(tensor, local.result.adapter[name]), name
    losses = [
        [record.metrics for record in ran.result.history if record.purpose == "evaluate"]
        for ran in (local, delivered)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 9

    # One download for three silos and five exchanges.
    assert len(delivered.streams) == 1
    spent = [record.statistics["delivery-bytes"] for record in delivered.result.history]
    cache = PartCache(tmp_path / "cache")
    assert sum(spent) == sum(cache.path(name).stat().st_size for name in left(cache))
    assert sum(1 for number in spent if number) == 1
    assert delivered.result.history[0].statistics["delivery-seconds"] > 0
    assert "delivery-bytes" not in local.result.history[0].statistics
    report = run_result(delivered.result, config={}, seconds=0.0)
    assert sum(report.delivery_bytes.values()) == sum(spent)
    assert sum(c["delivery-bytes"] for c in report.rounds[0].evaluate_counters.values()) > 0
    assert run_result(local.result, config={}, seconds=0.0).delivery_bytes == {}

    tokens = {
        token
        for message in delivered.sent
        for config in message.content.config_records.values()
        for token in config["split.delivery-tokens"].split()
    }
    assert len(tokens) == 8 * len(delivered.sent)
    assert not any(token in caplog.text for token in tokens)
    if open_files:
        assert len(os.listdir("/proc/self/fd")) < open_files + 20


@pytest.mark.exhaustive
def test_another_process_finds_the_model_on_its_disk(run, tmp_path):
    run(**{"num-server-rounds": 1})
    run.forget()
    again = run(**{"num-server-rounds": 1})
    assert again.streams == []
    assert all(r.statistics["delivery-bytes"] == 0 for r in again.result.history)
    run.forget()
    cache = PartCache(tmp_path / "cache")
    largest = max(cache.parts.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"broken")
    repaired = run(**{"num-server-rounds": 1})
    assert len(repaired.streams) == 1
    assert hashlib.sha256(largest.read_bytes()).hexdigest() == largest.name


@pytest.mark.exhaustive
def test_silos_at_once_share_one_cache(run):
    ran = run(grid={"threads": 3}, **{"num-server-rounds": 1})
    assert not any(record.failure for record in ran.result.history)
    whole = max(record.statistics["delivery-bytes"] for record in ran.result.history)
    # Only the small manifest may have come more than once.
    assert sum(record.statistics["delivery-bytes"] for record in ran.result.history) < 2 * whole


@pytest.mark.parametrize(
    ("silo", "node", "says"),
    [
        ({"model.delivery": "local"}, {}, "says model.delivery 'local', and the server delivers"),
        ({}, {"cache-dir": "/proc/nowhere"}, "cannot be kept at /proc/nowhere"),
    ],
)
def test_a_silo_that_cannot_have_it_says_why(run, silo, node, says):
    with pytest.raises(RoundError, match=says):
        run(silo=silo, node=node)


def test_a_silo_that_expects_it_and_gets_none_says_so(run, folder):
    with pytest.raises(RoundError, match="the server does not deliver the model"):
        run("local", silo={"model.delivery": "server"})
