"""`flower-split trunk serve` as a process of its own: equal results, whatever becomes of it."""

import signal

import httpx
import numpy as np
import pytest
from split_run import run_split
from steps import KEEPING, run_config
from tiny_checkpoint import save_tiny_model
from trunk_process import TrunkProcess
from typer.testing import CliRunner

from flower_split.apps.cli import cli


@pytest.mark.slow
def test_a_run_goes_on_at_a_service_that_was_killed(tmp_path):
    folder = save_tiny_model(tmp_path / "model", "llama")
    values = run_config(folder, **KEEPING)
    theirs, _ = run_split(values)
    service = TrunkProcess(folder, tmp_path / "service.log")
    killed = []

    def kill(message, context):
        fields = message.content["config"]
        if not killed and (fields["split.round"], context.node_config["partition-id"]) == (2, 1):
            killed.append(service.process.pid)
            service.kill()
            service.start()

    try:
        ours, _ = run_split({**values, "trunk.service": service.address}, before=kill)
        assert "flower_split_service_opened_runs_total 1.0" in httpx.get(service.metrics).text
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60.0) == 0
    finally:
        service.kill()
    assert killed and service.process.pid not in killed
    assert "the trunk service has ended" in service.log.read_text()
    for name, tensor in theirs.adapter.items():
        assert np.array_equal(ours.adapter[name].numpy(), tensor.numpy()), name


def test_a_service_with_half_of_its_certificates_says_what_it_lacks(tmp_path):
    command = ["trunk", "serve", str(tmp_path), "--strategy", "north.crt"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code != 0
    assert "--certificate and --private-key" in done.output
