"""`flower-split trunk serve` as a process of its own: equal results, whatever becomes of it."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from federation import wait_for
from grpc import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from split_run import run_split
from steps import KEEPING, run_config
from tiny_checkpoint import save_tiny_model
from typer.testing import CliRunner

from flower_split.apps.cli import cli

CLI = [sys.executable, "-m", "flower_split.apps.cli", "trunk", "serve"]


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Service:
    """A process that can be killed and started again."""

    def __init__(self, folder, log):
        self._ports = free_ports(4)
        data, control, health, metrics = map(str, self._ports)
        self._command = [
            *(*CLI, str(folder), "--device", "cpu", "--port", data),
            *("--control-port", control, "--health-port", health),
            *("--metrics", f"127.0.0.1:{metrics}"),
        ]
        self.address, self._health, self.log = f"127.0.0.1:{control}", f"127.0.0.1:{health}", log
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.start()

    def start(self):
        with self.log.open("ab") as written:
            self.process = subprocess.Popen(
                self._command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._serves, "the service serves", logs=self.log.read_text)

    def _serves(self):
        assert self.process.poll() is None, self.log.read_text()
        with insecure_channel(self._health) as channel:
            request = health_pb2.HealthCheckRequest(service="flower_split.v1.Trunk")
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2.0)
            except Exception:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

    def kill(self):
        self.process.kill()
        self.process.wait(60.0)


@pytest.mark.slow
def test_a_run_goes_on_at_a_service_that_was_killed(tmp_path):
    folder = save_tiny_model(tmp_path / "model", "llama")
    values = run_config(folder, **KEEPING)
    theirs, _ = run_split(values)
    service = Service(folder, tmp_path / "service.log")
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
