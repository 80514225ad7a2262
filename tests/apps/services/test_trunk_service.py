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
from flower_split.tls.provisioning import make_ca, make_server, make_strategy


def with_keys(keys):
    """Options of a service and settings of a run that know each other by certificates."""
    make_ca(keys)
    make_server(keys, ["localhost", "127.0.0.1"])
    make_strategy(keys, "north")
    service = {
        "--certificate": keys / "server.crt",
        "--private-key": keys / "server.key",
        "--ca": keys / "ca.crt",
        "--strategy": keys / "north-strategy.crt",
    }
    run = {
        "trunk.service-ca": str(keys / "ca.crt"),
        "trunk.service-certificate": str(keys / "north-strategy.crt"),
        "trunk.service-key": str(keys / "north-strategy.key"),
    }
    return [str(word) for option in service.items() for word in option], run


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "cpu, cpu"])
def test_a_run_goes_on_at_a_service_that_was_killed(tmp_path, devices):
    """Over TLS where it has two devices."""
    folder = save_tiny_model(tmp_path / "model", "llama")
    values = run_config(folder, **KEEPING)
    theirs, _ = run_split(values)
    (options, keys), ca = ([], {}), None
    if "," in devices:
        (options, keys), ca = with_keys(tmp_path / "keys"), tmp_path / "keys" / "ca.crt"
    log = tmp_path / "service.log"
    service = TrunkProcess(folder, log, *options, devices=devices, ca=ca)
    killed = []

    def kill(message, context):
        fields = message.content["config"]
        if not killed and (fields["split.round"], context.node_config["partition-id"]) == (2, 1):
            killed.append(service.process.pid)
            service.kill()
            service.start()

    try:
        ours, _ = run_split({**values, "trunk.service": service.address, **keys}, before=kill)
        told = httpx.get(service.metrics).text
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60.0) == 0
    finally:
        service.kill()
    assert "flower_split_service_opened_runs_total 1.0" in told
    assert f'device="{devices}"' in told
    assert killed and service.process.pid not in killed
    said = log.read_text()
    assert "the trunk service has ended" in said
    assert ("layer 1 on cpu, layer 2 on cpu" in said) == ("," in devices)
    for name, tensor in theirs.adapter.items():
        assert np.array_equal(ours.adapter[name].numpy(), tensor.numpy()), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "cpu"], "--devices names 'cpu' alone"),
        (["--devices", "cuda:0 cuda:1"], "--devices must be names with commas"),
        (["--devices", "cuda:0, cuda:00"], "--devices names cuda:0 twice"),
        (["--devices", "cpu, cuda:0"], "--devices must name devices of one kind"),
        (["--devices", "auto, auto"], "--devices must name every device"),
        (["--devices", "cpu, cpu", "--device", "cpu"], "--device cpu would not be used"),
    ],
)
def test_devices_that_cannot_hold_one_trunk_are_refused_before_anything(tmp_path, options, said):
    done = CliRunner().invoke(cli, ["trunk", "serve", str(tmp_path / "nothing"), *options])
    assert done.exit_code == 2 and said in done.stderr


def test_a_service_with_half_of_its_certificates_says_what_it_lacks(tmp_path):
    command = ["trunk", "serve", str(tmp_path), "--strategy", "north.crt"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code != 0
    assert "--certificate and --private-key" in done.output
