"""The baseline of a Flower message a half-step trains as the uncut model does, and is measured."""

import functools
import json
import sys

import against_today
import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import save_file
from throughput.party import WholeRole
from throughput.shapes import TOY, random_ids, random_model

from flower_split.apps.in_process import RUN_ID, InProcessGrid
from flower_split.config.sections import TrainConfig
from flower_split.training import train_round


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.medium
def test_its_losses_are_the_uncut_model_s(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(against_today.APP)
    from half_steps.client_app import app as client_app
    from half_steps.common import LEARNING_RATE
    from half_steps.server_app import app as server_app

    random_model(TOY).save_pretrained(tmp_path)
    save_file({"ids": random_ids(TOY)}, tmp_path / "ids.safetensors")
    config = against_today.run_config(TOY, tmp_path, steps=3)
    config |= {"threads": 1, "output-dir": str(tmp_path)}
    grid = InProcessGrid(client_app, 1, run_config=config)
    server_app(grid=grid, context=Context(RUN_ID, 0, {}, RecordDict(), config))
    steps = json.loads((tmp_path / against_today.RESULT).read_text())

    whole = WholeRole(str(tmp_path), TOY, threads=1, keep=False)
    losses = []
    train_round(
        whole.model,
        whole.optimizer,
        whole.batches(),
        TrainConfig(
            accumulation=TOY.microbatches,
            local_steps=3,
            learning_rate=LEARNING_RATE,
            max_grad_norm=0.0,
        ),
        progress=lambda report: losses.append(report.loss),
    )
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-6)
    assert losses[2] < losses[0]
    for step in steps:
        assert step["messages"] == 2 * TOY.microbatches + 1
        assert step["payload_bytes"] == 4 * random_ids(TOY).numel() * TOY.hidden * 4


@pytest.fixture(scope="module")
def simulated():
    """What a simulation with the same arguments has measured before."""
    return functools.cache(against_today.in_simulation)


@pytest.mark.exhaustive
@pytest.mark.parametrize("deployment", [False, True])
def test_it_measures_every_way(deployment, bench, simulated, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(against_today, "in_simulation", simulated)
    found = against_today.compare(bench, toy=True, deployment=deployment).figures
    assert len(found["ways"]) == 3 + deployment
    for way in found["ways"].values():
        assert way["seconds"] > 0
        assert way["silo_peak_bytes"] > 0
        assert way["round_bytes"] > 0
    split, messages, whole = list(found["ways"].values())[:3]
    assert split["step_bytes"] >= messages["step_bytes"] > whole["step_bytes"] == 0
